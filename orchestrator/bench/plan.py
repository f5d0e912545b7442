"""`ditlaw bench plan`: time and memory of planning a sweep of 10,000 cells, as a user calls it."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SPEC = """\
name: bench
models:
  patch: 4
  head_dim: 8
  sizes: {{rule: width, widths: {{from: 40, to: 800, count: 20, scale: linear}}, depth: 4}}
arms: {{mup: {{parameterization: {{name: mup, base_width: 64}}}}, sp: {{}}}}
training: {{batch_size: 64, schedule: {schedule}}}
axes: {{learning_rate: {{from: 1e-4, to: 1e-1, count: 10}}}}
seeds: [0, 1, 2, 3, 4]
budgets: {{flops: {{from: 1e12, to: 1e13, count: 5}}}}
"""
SCHEDULES = {"constant": "constant", "cooldown": "{name: wsd, cooldown: 0.1}"}
CHILD = """\
import resource, sys
from orchestrator.cli import main
try:
    main(["plan", sys.argv[1], "--json"])
except SystemExit as done:
    assert not done.code, done.code
heavy = sorted({"torch", "ray", "deepspeed", "mlflow"} & set(sys.modules))
used = resource.getrusage(resource.RUSAGE_SELF)
try:  # ru_maxrss would hold what the parent had when it forked
    with open("/proc/self/status") as status:
        peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
except OSError:
    peak = used.ru_maxrss
print(peak, used.ru_utime + used.ru_stime, *heavy, file=sys.stderr)
"""


def run(repeats: int = 5) -> dict[str, Any]:
    """Plan 10,000 cells `repeats` times in fresh processes, under a constant schedule and with cooldowns.

    Returns:
        cells, trials, seconds (median, start of Python included), cpu_seconds (the same, less what other processes take
        on a busy machine), megabytes (the largest resident set) and heavy_imports of the constant schedule; the same
        with `cooldown_` before them; python.
    """
    result: dict[str, Any] = {}
    for name, schedule in SCHEDULES.items():
        prefix = "" if name == "constant" else f"{name}_"
        result |= {f"{prefix}{key}": value for key, value in _measure(schedule, repeats).items()}
    return {**result, "repeats": repeats, "python": platform.python_version()}


def _measure(schedule: str, repeats: int) -> dict[str, Any]:
    seconds, cpu_seconds, megabytes, heavy = [], [], 0.0, set()
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "bench.yaml"
        spec.write_text(SPEC.format(schedule=schedule))
        for _ in range(repeats):
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", CHILD, str(spec)], capture_output=True, text=True, check=True, timeout=120
            )
            seconds.append(time.perf_counter() - began)
            kilobytes, cpu, *imports = done.stderr.split()
            cpu_seconds.append(float(cpu))
            megabytes = max(megabytes, int(kilobytes) / 1024)
            heavy |= set(imports)
    plan = json.loads(done.stdout)
    return {
        "cells": plan["num_cells"],
        "trials": plan["num_trials"],
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu_seconds),
        "megabytes": megabytes,
        "heavy_imports": sorted(heavy),
    }
