"""Tables of other people: how they are read, what is doubted, what is refused, and what the refusal says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.loading import Table, load_table
from analysis.magnitudes import number_of, scientific


@pytest.fixture
def frame() -> pd.DataFrame:
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e6, 1e9, 4), np.geomspace(1e8, 1e11, 4)))
    return pd.DataFrame({"params": N, "samples": D, "flops": 6 * N * D, "loss": 0.31 + 40 / N**0.29 + 300 / D**0.36})


def read(path: Path, text: str | bytes, **options: object) -> Table:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    table = load_table(path, **options)  # type: ignore[arg-type]
    table.rows("params", "samples", "flops", "loss")
    return table


def same(table: Table, frame: pd.DataFrame) -> None:
    names = ["params", "samples", "flops", "loss"]
    np.testing.assert_allclose(table.frame[names].to_numpy(dtype=float), frame[names].to_numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.3B", 1.3e9),
        ("400m", 4e8),
        ("1,300,000", 1.3e6),
        ("1'300'000", 1.3e6),
        ("1 300 000", 1.3e6),
        ("1\u202f300\u202f000.5", 1300000.5),
        ("6×10^18", 6e18),
        ("1.3×10¹⁸", 1.3e18),
        ("10^18", 1e18),
        ("3.2 EFLOPs", 3.2e18),
        ("2 PF-days", 1.728e20),
        ("1.3 billion params", 1.3e9),
        ("3.4 M tokens", 3.4e6),
        ("5", 5.0),
    ],
)
def test_numbers_as_people_write_them(text: str, value: float) -> None:
    assert number_of(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.541e10, "2.54×10¹⁰"),
        (1.25e10, "1.25×10¹⁰"),
        (2.5e10, "2.5×10¹⁰"),
        (1e18, "10¹⁸"),
        (3e-4, "3×10⁻⁴"),
        (0.0, "0"),
        (np.nan, "nan"),
    ],
)
def test_magnitudes_as_people_read_them(value: float, text: str) -> None:
    assert scientific(value) == text


@pytest.mark.parametrize(
    "text", ["", "S", "DiT-XL/2", "1e", "310^18", "1,5", "3.1x", "12%", "nan", "w16", "1 300,000", "1.300.000"]
)
def test_what_is_no_number(text: str) -> None:
    assert np.isnan(number_of(text))


@pytest.mark.parametrize(
    ("separator", "decimal", "words"),
    [
        (";", ".", "read with semicolons between columns"),
        ("\t", ".", "read with tabs between columns"),
        (";", ",", "commas within numbers read as decimal points"),
        (" ", ".", "read with spaces between columns"),
    ],
)
def test_other_delimiters_are_read_and_said(
    tmp_path: Path, frame: pd.DataFrame, separator: str, decimal: str, words: str
) -> None:
    table = read(tmp_path / "t.csv", frame.to_csv(index=False, sep=separator, decimal=decimal))
    same(table, frame)
    assert any(words in warning for warning in table.warnings)


def test_units_in_entries_and_in_names(tmp_path: Path, frame: pd.DataFrame) -> None:
    entries = frame.assign(params=[f"{n / 1e6:.9g}M" for n in frame["params"]])
    table = read(tmp_path / "entries.csv", entries.to_csv(index=False))
    same(table, frame)
    assert "column 'params' holds units or signs: '1M' read as 1e+06" in table.warnings
    names = {"params": "Model Size (M)", "samples": "tokens_b", "flops": "Compute (PF-days)", "loss": "Val Loss"}
    scaled = frame.assign(params=frame["params"] / 1e6, samples=frame["samples"] / 1e9, flops=frame["flops"] / 8.64e19)
    table = read(tmp_path / "names.csv", scaled.rename(columns=names).to_csv(index=False))
    same(table, frame)
    assert table.columns == names
    assert "column 'Compute (PF-days)' read in units of 8.64e+19, by its name" in table.warnings


def test_text_around_a_table_does_no_harm(tmp_path: Path, frame: pd.DataFrame) -> None:
    text = frame.assign(name="run #3").to_csv(index=False)
    same(read(tmp_path / "bom.csv", ("\ufeff# runs of May\n\n" + text).encode()), frame)
    same(read(tmp_path / "trailing.csv", "\n".join(line + "," for line in text.splitlines())), frame)


def test_what_spreadsheets_write_is_read(tmp_path: Path, frame: pd.DataFrame) -> None:
    same(read(tmp_path / "unicode.txt", frame.to_csv(index=False, sep="\t").encode("utf-16")), frame)
    same(read(tmp_path / "sep.csv", "sep=;\n" + frame.to_csv(index=False, sep=";")), frame)


def test_what_spreadsheets_leave_around_a_table_is_left_out_and_said(tmp_path: Path, frame: pd.DataFrame) -> None:
    titled = read(tmp_path / "titled.csv", "Runs of May,,,\n,,,\n" + frame.to_csv(index=False) + ",,,\n")
    same(titled, frame)
    assert {"2 lines above the column names left out: 'Runs of May'", "1 empty row left out"} <= set(titled.warnings)
    rows = [f"| {' | '.join(f'{value:.12g}' for value in row)} |" for row in frame.to_numpy()]
    markdown = "\n".join([f"| {' | '.join(frame.columns)} |", "|---|---:|:---|---|", *rows])
    same(read(tmp_path / "table.txt", markdown), frame)


def test_a_trial_measured_twice_with_other_losses_is_told(frame: pd.DataFrame) -> None:
    twice = pd.concat([frame.assign(trial_id=range(16)), frame.assign(trial_id=range(16), loss=2 * frame["loss"])])
    table = load_table(twice)
    np.testing.assert_allclose(table.frame["loss"], 2 * frame["loss"])
    (told,) = [text for text in table.warnings if "duplicates" in text]
    assert told.startswith("16 duplicates dropped (same trial and samples; 16 of them measured twice with diff")


def test_json_is_read_by_lines_rows_and_columns(tmp_path: Path, frame: pd.DataFrame) -> None:
    lines = frame.to_json(orient="records", lines=True)
    for name, text in (("a.jsonl", lines), ("b.ndjson", lines), ("c.json", frame.to_json(orient="records"))):
        same(read(tmp_path / name, text), frame)
    same(read(tmp_path / "d.json", json.dumps(frame.to_dict("list"))), frame)


def test_names_with_a_path_are_known_by_their_end(tmp_path: Path, frame: pd.DataFrame) -> None:
    rows = [
        {
            "config": {"params": r["params"], "tags": ["a"]},
            "train": {"loss": 9.0, "tokens": r["samples"]},
            "eval": {"loss": r["loss"]},
            "flops": r["flops"],
        }
        for r in frame.to_dict("records")
    ]
    table = read(tmp_path / "runs.jsonl", "\n".join(map(json.dumps, rows)))
    same(table, frame)
    assert table.columns == {
        "params": "config.params", "samples": "train.tokens", "flops": "flops", "loss": "eval.loss"
    }  # fmt: skip
    trained = frame.rename(columns={"loss": "train/loss"})
    with pytest.raises(ValueError, match="no column for loss"):
        load_table(trained).rows("loss")


BAD: list[tuple[str, str | bytes, str]] = [
    ("empty.csv", "", "is empty. Wanted a line of column names"),
    ("comments.csv", "# nothing\n\n", "is empty"),
    ("names.csv", "params,samples,flops,loss\n", "column names and nothing below them"),
    ("headerless.csv", "1e6,1e8,6e14,3.1\n2e6,1e8,1.2e15,3\n", "no header: its first line holds numbers"),
    ("utf16.csv", "params,loss\n1,2\n".encode("utf-16-le"), "not plain text"),
    ("lines.jsonl", '{"params": 1, "loss": 2}\n{"params":\n', r"line 2 of .* is no JSON"),
    ("words.jsonl", '"params"\n"loss"\n', "holds no rows: wanted a line for each run"),
    ("none.json", "[]", "is empty"),
    ("lengths.json", '{"params": [1, 2], "loss": [1]}', "columns of other lengths"),
    ("sheet.csv", b"PK\x03\x04" + b"x" * 50, "not plain text"),
    ("latin.csv", "modèle,loss\na,1\n".encode("latin-1"), "not UTF-8 text"),
    ("ragged.csv", "params,samples,flops,loss\n1,2,3,4\n1,2,3,4,5,6\n", "Expected 4 fields in line 3, saw 6"),
    ("twice.csv", "params,samples,loss,loss\n1,2,3,4\n", "has the column 'loss' more than once"),
    ("broken.parquet", b"no parquet", "could not be read as a table"),
    ("table.xlsx", b"PK", "is no CSV, JSON lines or Parquet file"),
    ("words.csv", "params,samples,flops,loss\na,b,c,d\n", r"column 'params' holds no numbers \(first: a\)"),
    ("truth.csv", "params,samples,flops,loss\n1,1,6,True\n", r"column 'loss' holds no numbers \(first: True\)"),
    (
        "near.csv",
        "params,samples,flops,los\n1,1,6,2\n",
        r"It has: .*, flops, los\. The nearest name is 'los'",
    ),
    ("logs.csv", "log10_params,loss\n1,2\n", r"Logarithms \(log10_params\) are not read"),
    ("two.csv", "params,loss\n1,2\n", "no column for samples or flops"),
    ("zero.csv", "params,samples,flops,loss\n1,1,6,2\n1,1,0,3\n", r"'flops' .* got row 2 \(0\)"),
    ("minus.csv", "params,samples,flops,loss\n1,1,6,2\n-5,1,6,3\n", r"'params' .* got row 2 \(-5\)"),
    ("holes.csv", "params,samples,flops,loss\n1,1,6,2\n1,1,6,n/a\n1,1,6,oops\n", r"row 2 \(nan\), row 3 \(oops\)"),
    ("endless.csv", "params,samples,flops,loss\n1,1,6,inf\n", r"row 1 \(inf\)"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_tables_are_refused_with_a_reason(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name, text)


def test_a_folder_of_unlike_files_is_refused(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.iloc[3:].to_parquet(tmp_path / "b.parquet")
    assert "13 duplicates dropped (identical rows)" in load_table(tmp_path).warnings
    frame.assign(more=1).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(ValueError, match=r"c\.csv and a\.csv .* have other columns \(more only in one"):
        load_table(tmp_path)


def test_force_leaves_bad_rows_out_and_says_so(frame: pd.DataFrame) -> None:
    frame.loc[[2, 5], "loss"] = [np.nan, -1.0]
    rows, said = load_table(frame, force=True).rows("params", "samples", "flops", "loss")
    assert len(rows) == len(frame) - 2
    assert said == ["forced: 2 rows without a positive loss left out: row 3 (nan), row 6 (-1.0)"]


def test_bad_values_of_a_column_that_is_not_needed_do_not_matter(frame: pd.DataFrame) -> None:
    frame.loc[2, "params"] = -1.0
    rows, said = load_table(frame).rows("flops", "loss")
    assert (len(rows), said) == (len(frame), [])


def test_mixed_units_are_doubted(frame: pd.DataFrame) -> None:
    frame.loc[:2, "params"] /= 1e6
    said = load_table(frame).rows("params", "samples", "flops", "loss")[1]
    assert any(text.startswith("params spans a factor of 1.0e+09 (1 in row 1,") for text in said)
    assert any("flops / (params samples) runs from 6" in text for text in said)


@pytest.mark.parametrize(
    ("column", "kinds", "quantity", "what"),
    [
        ("flops_definition", ("6ND", "counted"), "loss", "FLOP definitions"),
        ("objective", ("flow", "ddpm"), "loss", "objectives"),
        ("dataset", ("imagenet", "coco"), "loss", "datasets"),
        ("precision", ("fp32", "bf16"), "loss", "precision classes"),
        ("sampler", ("ddim", "heun"), "fid", "samplers"),
        ("guidance", (1.0, 1.5), "fid", "guidance scales"),
        ("eval_samples", (5000, 50000), "fd", "numbers of evaluated samples"),
        ("fd_encoder", ("dinov2", "clip"), "fd", "FD encoders"),
        ("fd_encoder_digest", ("3fa8", "77c1"), "fd", "weights of FD encoders"),
        ("fd_encoder_digest", ("3fa8", "77c1"), "fid", "weights of FD encoders"),
    ],
)
def test_rows_that_no_law_describes_are_refused_unless_forced(
    frame: pd.DataFrame, column: str, kinds: tuple[object, object], quantity: str, what: str
) -> None:
    mixed = frame.assign(**{column: [kinds[k % 2] for k in range(len(frame))], "fid": 9.0, "fd": 9.0})
    with pytest.raises(ValueError, match=rf"the rows mix {what} \(.*: 8 rows, .*: 8 rows\).*--force"):
        load_table(mixed, quantity=quantity)
    forced = load_table(mixed, quantity=quantity, force=True)
    assert any(f"forced: fitted together although the rows mix {what}" in text for text in forced.warnings)
    if quantity != "loss":
        assert not any("mix" in text for text in load_table(mixed, quantity="loss").warnings)


def test_zero_stages_with_masters_are_one_class_and_without_are_another(frame: pd.DataFrame) -> None:
    stages = np.arange(len(frame)) % 3 + 1
    load_table(frame.assign(precision="bf16", zero_stage=stages))
    load_table(frame.assign(precision="fp32", zero_stage=stages - 1))
    with pytest.raises(ValueError, match="bf16 with fp32 masters: 10 rows, bf16 without fp32 masters: 6 rows"):
        load_table(frame.assign(precision="bf16", zero_stage=stages - 1))


def test_what_is_fitted_is_as_asked(frame: pd.DataFrame) -> None:
    both = frame.assign(fid=frame["loss"] * 10)
    assert load_table(both).quantity == "loss"
    assert load_table(both, quantity="fid").frame["loss"].iloc[0] == both["fid"].iloc[0]
    assert load_table(both.drop(columns="loss")).quantity == "fid"
    assert load_table(both, {"loss": "fid"}).quantity == "fid"
    with pytest.raises(ValueError, match="no column for fd "):
        load_table(both, quantity="fd").rows("loss")


def test_one_missing_scale_follows_the_named_rule(frame: pd.DataFrame) -> None:
    for lacking in ("params", "samples", "flops"):
        table = load_table(frame.drop(columns=lacking))
        np.testing.assert_allclose(table.frame[lacking], frame[lacking])
        assert table.derived == lacking
        assert any(f"no column of {lacking}: derived" in text and "the default rule" in text for text in table.warnings)
        named = load_table(frame.drop(columns=lacking), flops_rule="6ND")
        assert not any("default rule" in text for text in named.warnings)
        with pytest.raises(ValueError, match=f"no column for {lacking} .*say so with --flops-rule 6ND"):
            load_table(frame.drop(columns=lacking), flops_rule="none").rows(lacking)
    with pytest.raises(ValueError, match="there is no FLOPs rule '2ND'; the rules are 6ND, none"):
        load_table(frame, flops_rule="2ND")


def test_outcomes_are_counted(frame: pd.DataFrame) -> None:
    status = ["finished"] * len(frame)
    status[0], status[1], status[2] = "diverged", "stopped", "killed"
    frame.loc[0, "loss"] = frame.loc[2, "loss"] = np.nan
    table = load_table(frame.assign(status=status))
    assert len(table.diverged) == 1
    assert table.frame["censored"].sum() == 1
    assert "1 row without a measurement not fitted" in table.warnings
    assert len(table.rows("params", "samples", "flops", "loss")[0]) == len(frame) - 2


def test_more_columns_than_one_that_would_do_are_told(frame: pd.DataFrame) -> None:
    table = load_table(frame.assign(n_params=frame["params"] * 1.2))
    assert "params read from column 'params'; there is also 'n_params'" in table.warnings
    with pytest.raises(ValueError, match="gives 'loss' for both params and loss"):
        load_table(frame, {"params": "loss", "loss": "loss"})


def test_a_column_that_cannot_be_read_is_not_derived(frame: pd.DataFrame) -> None:
    table = load_table(frame.assign(params=[f"{v:,.0f}".replace(",", ".") for v in frame["params"]]))
    with pytest.raises(ValueError, match=r"column .params. holds no numbers .*1\.000\.000.*Write plain"):
        table.rows("params", "samples", "flops", "loss")


def test_flops_that_are_too_few_for_any_model_are_doubted(frame: pd.DataFrame) -> None:
    _, said = load_table(frame.assign(flops=frame["flops"] / 1e18)).rows("params", "samples", "flops", "loss")
    assert any("flops are 6.0e-18 times params samples" in text for text in said)
    _, said = load_table(frame.assign(flops=frame["flops"] * 1e18)).rows("params", "samples", "flops", "loss")
    assert any("flops are 6.0e+18 times params samples, more than any model spends" in text for text in said)
