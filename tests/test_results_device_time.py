"""Where the time of gangs went: every second in one account, packs counted once, and MFU by size beside the plan's."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from analysis.report_time import time_tables
from orchestrator.results.device_time import ACCOUNTS, device_time, share_of_steps

START = datetime(2026, 11, 28, tzinfo=UTC)


def attempt(trial: str, start: float, end: float, gang: str | None = "gang-0", **known: float | None) -> dict[str, Any]:
    seconds = dict.fromkeys(("evaluation_seconds", "compile_seconds", "startup_seconds", "checkpoint_seconds"), 0.0)
    times = {"started_at": START + timedelta(seconds=start), "ended_at": START + timedelta(seconds=end)}
    row = {"trial_id": trial, "attempt": 0, "gang": gang, "flops": 1e12, "train_seconds": 1.0, "waited_seconds": None}
    return row | times | seconds | known


ATTEMPTS = pd.DataFrame(
    [
        attempt("a", 0, 60, waited_seconds=20.0, compile_seconds=10.0, startup_seconds=4.0, evaluation_seconds=2.0),
        attempt("b", 2, 50, compile_seconds=10.0, startup_seconds=2.0, evaluation_seconds=3.0, checkpoint_seconds=1.0),
        attempt("a", 0, 30, gang="gang-1", waited_seconds=8.0),
        attempt("c", 65, 95, waited_seconds=5.0, train_seconds=None, evaluation_seconds=None, startup_seconds=None),
        attempt("d", 100, 900, gang=None),
    ]
)


def test_every_second_of_a_gang_is_in_one_account():
    time = device_time(ATTEMPTS)
    assert sorted(time["trial_ids"]) == [("a",), ("a", "b"), ("c",)], "a pack is one; d died with its driver"
    sums = time[list(ACCOUNTS)].sum().to_dict()
    assert sums == {
        "training": 60 - 10 - 10 - 6 - 5 - 1 + 30,
        "evaluation": 5,
        "compiling": 20,
        "setting up": 6,
        "saving": 1,
        "lost": 30,
        "waiting": 33,
    }
    assert share_of_steps(time) == pytest.approx((58 + 5) / 153)
    assert time["waits_known"].all()
    assert share_of_steps(device_time(ATTEMPTS.iloc[:0])) is None


def test_the_report_shows_it_and_mfu_by_size():
    trials = [
        {"trial_id": trial, "size": size, "params_backbone": params, "flops": 2e12, "seconds": 20.0}
        | {"peak_flops_per_second": 1e12}
        for trial, size, params in (("a", "w64", 2e5), ("b", "w64", 2e5), ("c", "w128", 8e5))
    ]
    found = SimpleNamespace(attempts=ATTEMPTS, plan={"trials": trials})
    time, words, mfu, _ = (unescape(re.sub(r"<[^>]+>", " ", part)).split() for part in time_tables(found))
    assert time[-1] == "41.2%"
    assert "not known" not in " ".join(words)
    rows = " ".join(mfu[mfu.index("alone") + 1 :])
    # a and b: 3e12 FLOPs in 90 s of gangs, 58 s of them training; 4e12 in 40 s as planned
    assert rows == "w64 200K 2 40 s 90 s 10.00% 3.33% 5.17% w128 800K 1 20 s 30 s 10.00% 3.33%"
    before = SimpleNamespace(attempts=ATTEMPTS.assign(waited_seconds=None, compile_seconds=None), plan={})
    assert "of 3 of 3 attempts it was not recorded how long gangs waited and compiled" in " ".join(time_tables(before))
