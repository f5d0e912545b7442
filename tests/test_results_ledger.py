"""Every sample that was trained is in one account, and the accounts add up to what was spent."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.results.ledger import ACCOUNTS, ledger

FLOPS = 10.0
"""Of a sample."""


def attempts(*rows: tuple[int, int, str]) -> pd.DataFrame:
    columns = ["trial_id", "attempt", "samples_start", "samples_end", "outcome", "flops"]
    table = [("t", number, start, end, how, FLOPS * (end - start)) for number, (start, end, how) in enumerate(rows)]
    return pd.DataFrame(table, columns=columns)


def measured(*samples: int, diverged: tuple[int, ...] = ()) -> pd.DataFrame:
    rows = [("t", at, FLOPS * at, "ok") for at in samples] + [("t", at, FLOPS * at, "diverged") for at in diverged]
    return pd.DataFrame(rows, columns=["trial_id", "samples", "flops", "outcome"])


def of(attempts: pd.DataFrame, measurements: pd.DataFrame) -> dict[str, Any]:
    (row,) = ledger(attempts, measurements).to_dict("records")
    return {name.removeprefix("flops_"): value / FLOPS for name, value in row.items() if name != "trial_id"}


@pytest.mark.parametrize(
    ("tried", "found", "accounts"),
    [
        # An undisturbed trial of three budgets: one run a budget would have cost 64 + 128 + 256.
        ([(0, 256, "completed")], measured(64, 128, 256), {"useful": 256, "shared": 192}),
        # It fails at 200, past its checkpoint at 160: 40 samples are trained again.
        ([(0, 200, "failed"), (160, 256, "completed")], measured(256), {"useful": 256, "replayed": 40}),
        # Nothing has gone on from there yet: only what is measured is certain.
        ([(0, 200, "failed")], measured(128), {"useful": 128, "failed": 72}),
        ([(0, 200, "stopped")], measured(128), {"useful": 128, "pending": 72}),
        ([(0, 200, "running")], measured(), {"pending": 200}),
        # A cooldown begins on its trunk at 192: that part was not spent on it.
        ([(192, 256, "completed")], measured(256), {"useful": 64, "shared": 192}),
        # All of it was trained by another sweep.
        ([], measured(64, 128), {"shared": 192}),
        # It diverges at 96, having asked for 128 and 256: a result, for which two runs would have gone to 96 each.
        ([(0, 96, "diverged")], measured(64, diverged=(128, 256)), {"useful": 96, "shared": 160}),
        # Two drivers trained the same: one of them in vain.
        ([(0, 128, "completed"), (0, 128, "completed")], measured(128), {"useful": 128, "replayed": 128}),
        # A failure twice at the same place.
        (
            [(0, 90, "failed"), (64, 90, "failed"), (64, 128, "completed")],
            measured(128),
            {"useful": 128, "replayed": 52},
        ),
    ],
)
def test_accounts_of_a_trial(tried, found, accounts) -> None:
    row = of(attempts(*tried), found)
    expected = dict.fromkeys(("useful", "replayed", "failed", "pending", "shared"), 0) | accounts
    assert {name: row[name] for name in expected} == expected
    assert row["spent"] == sum(end - start for start, end, _ in tried)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from(["failed", "stopped", "running"]))),
    st.integers(1, 60),
)
def test_the_accounts_add_up_whatever_happened(spans, reached) -> None:
    tried = [(start, start + length, how) for start, length, how in spans]
    row = of(attempts(*tried), measured(reached))
    assert sum(row[name.removeprefix("flops_")] for name in ACCOUNTS) == pytest.approx(row["spent"])
    covered = {sample for start, end, _ in tried for sample in range(start, end)}
    assert row["useful"] == len({sample for sample in covered if sample < reached})
    assert row["spent"] - row["replayed"] == len(covered)


def test_an_empty_folder_has_an_empty_ledger() -> None:
    assert len(ledger(attempts(), measured())) == 0
