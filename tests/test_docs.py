"""The documentation: it builds, its links lead somewhere, its commands run, its notebook runs."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from sweep_folder import by_law, drive
from test_analysis_planted import write_results

from orchestrator.cli import main
from orchestrator.planning.plan import make

PAGES = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
DRY = (
    "eval",
    "sample",
    "encoders",
    "concepts",
    "run",
    "submit",
    "soak",
    "bench",
    "coord-check",
    "solver-statistics",
    "cancel",
    "retry",
)
"""Commands that take a cluster, minutes or a server: of these the words are checked and nothing is done."""
ELSEWHERE = (
    "data encode",
    "data vae",
    "quickstart-test",
    "://",
    "/shared/",
    "/media/",
    "s3:",
    "--watch",
    "--follow",
    "data fetch",
    "logs",
    "completion",
)
"""Marks of commands that need what is not here, or never end."""
ROOT = click.Context(main, info_name="ditlaw")


def commands() -> Iterator[tuple[Path, str]]:
    """Every line of a page that is a command, without its comment."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            if re.match(r"( {4})?(\$ )?ditlaw [a-z]", line):
                yield page, re.split(r"\s+#\s", line.strip().removeprefix("$ "))[0]


COMMANDS = sorted({text for _, text in commands()})


def smaller(path: Path) -> Path:
    """The quickstart with one arm, three sizes and three budgets, which its pages' commands are run on."""
    lines = Path("sweeps/quickstart.yaml").read_text().splitlines()
    left_out = ("  sp: ", "    - {name: w24", "    - {name: w40", "    - {name: w48", "    - {name: w96")
    text = "\n".join(line for line in lines if not line.startswith(left_out))
    path.write_text(text.replace("[2.5e10, 5e10, 1e11, 2e11, 4e11]", "[5e10, 1e11, 2e11]"))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages suppose it: sweeps, results of the quickstart, and a table of runs."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree("sweeps", folder / "sweeps")
    drive(make(smaller(folder / "quickstart.yaml")), folder / "results" / "quickstart", loss=by_law)
    sizes, budgets = ("25K", "60K", "150K"), (5e10, 1e11, 2e11)
    write_results(folder / "results" / "ladder", arms=("mup",), sizes=sizes, budgets=budgets, rates=(1e-3,), noise=0.0)
    shutil.copy("tests/data/chinchilla_points.csv", folder / "runs.csv")
    text = (folder / "runs.csv").read_text().splitlines()
    rows = [text[0] + ",samples"] + [f"{r},{float(r.split(',')[1]) / 6 / float(r.split(',')[0])}" for r in text[1:]]
    (folder / "runs.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("text", COMMANDS)
def test_every_command_of_the_pages_is_understood(text: str) -> None:
    command, words, context = main, shlex.split(text)[1:], ROOT
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        context = click.Context(found, parent=context, info_name=name)
        command = found
    wrong = ""
    try:
        command.make_context(context.info_name, words, parent=context.parent).close()
    except click.BadParameter as error:
        wrong = error.message
    assert not wrong or "does not exist" in wrong, wrong  # files of the pages' examples are not here


def is_cheap(text: str) -> bool:
    words = shlex.split(text)
    placeholders = {"SPEC", "SWEEP", "sweep.yaml"} & set(words)
    return words[1] not in DRY and not placeholders and not any(mark in text for mark in ELSEWHERE)


@pytest.mark.parametrize("text", [text for text in COMMANDS if is_cheap(text)])
def test_commands_that_need_no_cluster_do_what_the_pages_say(
    text: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = shlex.split(text)[1:]
    if words[0] == "fit" and "--resamples" not in words:
        words += ["--resamples", "100"]  # enough to run every line of it
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output


def json_keys(command: str) -> set[str]:
    """The keys that the page of JSON objects names for a command."""
    page = Path("docs/api.md").read_text()
    table = page.partition(f"`{command}`:\n\n")[2].partition("\n\n")[0]
    return {key for line in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", line.split("|")[1])}


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("ditlaw plan SPEC --json", ["plan", "sweeps/smoke.yaml", "--json"]),
        ("ditlaw fit TABLE --law LAW --json", ["fit", "runs.csv", "--law", "surface", "--resamples", "40", "--json"]),
    ],
)
def test_the_json_objects_have_the_keys_that_the_page_names(
    named: str, words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = json_keys(named)
    assert len(keys) > 5
    monkeypatch.chdir(place)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert keys <= set(json.loads(done.output))


@pytest.mark.parametrize("page", ["docs/api.md"])
def test_the_python_of_the_pages_runs(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", Path(page).read_text(), flags=re.DOTALL)
    monkeypatch.chdir(place)
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_links_between_pages_and_files_lead_somewhere() -> None:
    made = {"sweep-reference.md", "commands.md", "columns.md"}
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not re.match(r"[a-z]+:", target) and target not in made:
                assert (page.parent / target).exists(), f"{page} links to {target}, which is not there"


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the documentation's tools are not installed: pip install -e .[docs]")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "sweep-reference.html").read_text()
    assert all(name in reference for name in ("learning_rate", "budgets", "parameterization"))
    pages = " ".join(path.read_text() for path in (tmp_path / "site").glob("*.html"))
    assert not re.search(r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)"', pages), "the site loads from elsewhere"


def test_the_notebook_runs_and_its_objects_show_themselves() -> None:
    cells = json.loads(Path("docs/notebooks/analysis.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    shown = []
    for cell in cells:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "cell", "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    pages = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert sum("<table>" in (page or "") for page in pages) >= 2
    assert sum(type(value).__name__ == "Figure" for value in shown) == 3
