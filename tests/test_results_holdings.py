"""What other sweeps of the folder have measured is not done again: rows, curves and checkpoints are taken over."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rights import without_rights

from orchestrator.planning.plan import Plan, make
from orchestrator.results.checkpoints import checkpoint_folders, checkpoint_name, checkpoints_folder
from orchestrator.results.holdings import adopt_checkpoints, adopt_measurements, holdings
from orchestrator.results.schema import SCHEMAS
from orchestrator.results.store import Store, read_curves, read_measurements, write_json

SPEC = """\
name: {name}
models: {{patch: 7, head_dim: 8, sizes: [{{name: a, width: 16, depth: 1}}, {{name: b, width: 32, depth: 1}}]}}
arms: {{{arm}: {{parameterization: sp}}}}
training: {{batch_size: 32, schedule: {schedule}}}
budgets: {{flops: {budgets}}}
"""


@pytest.fixture
def plan_of(tmp_path):
    def make_plan(name: str, budgets: list[float], arm: str = "sp", schedule: str = "constant") -> Plan:
        path = tmp_path / f"{name}.yaml"
        path.write_text(SPEC.format(name=name, budgets=budgets, arm=arm, schedule=schedule))
        return make(path)

    return make_plan


def row(kind: str, **values) -> dict:
    plain = {"string": "x", "int64": 1, "int32": 1, "double": 1.0, "bool": True}
    filled = {
        field.name: None if field.nullable else plain.get(str(field.type), datetime.now(UTC)) for field in SCHEMAS[kind]
    }
    return {**filled, "outcome": "ok", **values} if "outcome" in filled else {**filled, **values}


def measure(store: Store, plan: Plan, up_to: float = 1e99, loss: float = 0.5, at: datetime | None = None) -> None:
    write_json(store.folder / "plan.json", plan.as_json())
    for trial in plan.trials:
        for samples in trial.milestones:
            if samples * trial.flops_per_sample > up_to:
                continue
            values = {"trial_id": trial.trial_id, "samples": samples, "attempt": 0}
            created = at or datetime.now(UTC)
            store.append_measurements(
                [row("measurements", **values, loss=loss, sweep=plan.sweep.name, created_at=created)]
            )
            store.append_curves([row("curves", **values)])
            save(store.folder, trial.trial_id, samples)


def save(results: Path, trial_id: str, samples: int) -> Path:
    """A checkpoint; its folder."""
    folder, state = checkpoints_folder(results, trial_id) / checkpoint_name(samples), b"state"
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(state)
    known = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    manifest = {"trial_id": trial_id, "samples": samples, "files": {"state.safetensors": known}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def left(plan: Plan, folder: Path) -> Plan:
    held = holdings(folder, [trial.trial_id for trial in plan.trials])
    return plan.remaining(held.measured, held.checkpoints)


def test_what_is_measured_is_not_planned_again_and_a_longer_budget_continues(plan_of, tmp_path):
    short, long = plan_of("one", [1e9, 2e9]), plan_of("one", [1e9, 2e9, 4e9])
    folder = tmp_path / "results" / "one"
    assert left(long, folder).num_cells == long.num_cells == 6
    measure(Store(folder), short)
    assert (left(short, folder).trials, left(short, folder).flops_planned) == ((), 0)
    assert left(short, folder).cells_measured == 4
    rest = left(long, folder)
    assert (rest.num_cells, rest.cells_measured) == (2, 4)
    assert rest.flops_planned == pytest.approx(2 * 2e9, rel=0.02)  # from 2e9 on to 4e9, for two sizes
    assert rest.flops_measured == pytest.approx(short.flops_planned)
    assert {t["samples_start"] for t in rest.as_json()["trials"]} == {t.milestones[-1] for t in short.trials}
    assert {t.trial_id for t in rest.trials} == {t.trial_id for t in long.trials}


def test_another_sweep_of_the_folder_counts_under_any_name(plan_of, tmp_path):
    first, second = plan_of("one", [1e9, 2e9]), plan_of("two", [2e9, 4e9], arm="plain")
    measure(Store(tmp_path / "results" / "one"), first)
    here = tmp_path / "results" / "two"
    rest = left(second, here)
    assert (rest.num_cells, rest.cells_measured) == (2, 2)
    assert rest.flops_planned == pytest.approx(2 * 2e9, rel=0.02)
    elsewhere = tmp_path / "other" / "two"
    assert left(second, elsewhere).num_cells == 4


def test_rows_curves_and_checkpoints_are_taken_over_once(plan_of, tmp_path):
    first, second = plan_of("one", [1e9, 2e9]), plan_of("two", [1e9, 2e9, 4e9])
    early = datetime.now(UTC) - timedelta(days=1)
    measure(Store(tmp_path / "results" / "one"), first, loss=0.25, at=early)
    measure(Store(tmp_path / "results" / "zero"), first, loss=0.75, at=early + timedelta(hours=1))
    store = Store(tmp_path / "results" / "two")
    cells = [(trial.trial_id, m) for trial in second.trials for m in trial.milestones]
    assert adopt_measurements(store, cells) == 4
    assert adopt_measurements(store, cells) == 0
    rows = read_measurements(store.folder)
    assert (len(rows), set(rows["loss"]), set(rows["sweep"])) == (4, {0.25}, {"one"})
    assert len(read_curves(store.folder)) == 4

    held = holdings(store.folder, [trial.trial_id for trial in second.trials], beside=False)
    rest = second.remaining(held.measured, held.checkpoints)
    stops = {trial.trial_id: sorted({*trial.milestones, *trial.branch_points}) for trial in rest.trials}
    assert adopt_checkpoints(store, stops) == 2
    assert adopt_checkpoints(store, stops) == 0
    for trial in first.trials:
        (kept,) = checkpoint_folders(store.folder, trial.trial_id)
        assert int(kept.name) == trial.milestones[-1]


@pytest.mark.parametrize("private", ["", "measurements", "checkpoints", "logs", "plan.json"])
def test_a_neighbour_that_may_not_be_read_is_left_out_and_told_of(plan_of, tmp_path, caplog, private):
    first, second = plan_of("one", [1e9, 2e9]), plan_of("two", [1e9, 2e9, 4e9])
    for name in ("open", "private"):
        measure(Store(tmp_path / "results" / name), first)
    (tmp_path / "results" / "private" / "logs").mkdir()
    (tmp_path / "results" / "two").mkdir()
    (tmp_path / "results" / "two").chmod(0o777)
    (tmp_path / "results" / "private" / private).chmod(0)
    store = Store(tmp_path / "results" / "two")
    cells = [(trial.trial_id, m) for trial in second.trials for m in trial.milestones]
    with without_rights(tmp_path):
        assert adopt_measurements(store, cells) == 4
        assert adopt_checkpoints(store, {trial.trial_id: [trial.milestones[-1]] for trial in second.trials}) == 2
        assert left(second, store.folder).cells_measured == 4
    told = [record.getMessage() for record in caplog.records]
    named = [line for line in told if "is not taken over, as it cannot be read" in line]
    assert bool(named) == (private != "plan.json"), "what the plan says the logs say too"
    assert all(str(tmp_path / "results" / "private") in line for line in named)


def test_a_folder_whose_neighbours_cannot_be_listed_has_none(plan_of, tmp_path):
    plan = plan_of("one", [1e9])
    (tmp_path / "results" / "one").mkdir(parents=True)
    (tmp_path / "results").chmod(0o711)
    with without_rights(tmp_path):
        assert left(plan, tmp_path / "results" / "one").num_cells == plan.num_cells


@pytest.mark.parametrize("damage", ["bit flip", "truncated", "no manifest", "manifest broken", "another trial"])
def test_a_damaged_checkpoint_is_not_taken_over_and_the_one_before_it_is(tmp_path, caplog, damage):
    beside, store = tmp_path / "results" / "one", Store(tmp_path / "results" / "two")
    (beside / "measurements").mkdir(parents=True)
    save(beside, "t0", 32)
    bad = save(beside, "t0", 64)
    state, manifest = bad / "state.safetensors", bad / "manifest.json"
    if damage == "bit flip":
        state.write_bytes(b"stbte")
    elif damage == "truncated":
        state.write_bytes(b"stat")
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "manifest broken":
        manifest.write_text("{")
    else:
        manifest.write_text(manifest.read_text().replace("t0", "t1"))
    assert adopt_checkpoints(store, {"t0": [64, 128]}) == 1
    assert f"checkpoint {bad} could not be taken over" in caplog.text
    folder = checkpoints_folder(store.folder, "t0")
    assert [place.name for place in folder.iterdir()] == [checkpoint_name(32)], "nothing is left of the other"
    assert (folder / checkpoint_name(32) / "state.safetensors").read_bytes() == b"state"


def test_a_trunk_is_planned_only_as_far_as_cooldowns_need_it(plan_of, tmp_path):
    schedule = "{name: wsd, cooldown: 0.25}"
    short, long = (plan_of("one", b, schedule=schedule) for b in ([1e9, 2e9], [1e9, 2e9, 4e9]))
    folder = tmp_path / "results" / "one"
    assert len(short.trials) == 2 * 3
    measure(Store(folder), short)
    for trunk in (trial for trial in short.trials if trial.branch_points):
        for samples in trunk.branch_points:
            (checkpoints_folder(folder, trunk.trial_id) / checkpoint_name(samples)).mkdir(parents=True)
    assert left(short, folder).trials == ()
    rest = left(long, folder)
    trunks = [trial for trial in rest.trials if trial.branch_points]
    assert len(rest.trials) == 4
    assert [len(trial.branch_points) for trial in trunks] == [1, 1]
    assert all(rest.start(trunk) > 0 for trunk in trunks)
    # A cooldown that has begun needs its trunk no more.
    begun = next(trial for trial in rest.trials if trial.trunk is not None)
    (checkpoints_folder(folder, begun.trial_id) / checkpoint_name(begun.first + 32)).mkdir(parents=True)
    again = left(long, folder)
    assert len(again.trials) == 3
    assert again.start(next(t for t in again.trials if t.trial_id == begun.trial_id)) == begun.first + 32


def test_identity_does_not_know_names(plan_of):
    one, two = plan_of("one", [1e9]), plan_of("two", [2e9], arm="other")
    assert {t.trial_id for t in one.trials} == {t.trial_id for t in two.trials}
    assert one.digest != two.digest
    assert dataclasses.replace(one.trials[0], arm="x").trial_id == one.trials[0].trial_id
