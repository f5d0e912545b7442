"""The `ditlaw` command: the only place that wires rooms together, and the only one that prints.

Exit codes: 0 done; 1 some trials could not be run; 2 bad input, nothing was written; 130 interrupted, to be continued.

The help of `ditlaw` and docs/cli.md list them.

Heavy libraries are imported where a command needs them, so that help and planning answer at once.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import warnings
from typing import Any

import click

from orchestrator.cli.analysing import fit, report
from orchestrator.cli.benching import bench
from orchestrator.cli.completing import completion
from orchestrator.cli.datasets import data
from orchestrator.cli.inspecting import concepts, coord_check, solver_statistics
from orchestrator.cli.looking import encoders, evaluate, noise, sample
from orchestrator.cli.planning import plan, schema
from orchestrator.cli.predicting import predict
from orchestrator.cli.refusals import fail
from orchestrator.cli.running import compact, run, sync
from orchestrator.cli.simulating import simulate
from orchestrator.cli.soaking import soak
from orchestrator.cli.speaking import be_quiet
from orchestrator.cli.steering import cancel, retry
from orchestrator.cli.submitting import submit
from orchestrator.cli.suggesting import suggest
from orchestrator.cli.watching import logs, status


class Commands(click.Group):
    """As click's, but for Ctrl-C, which leaves with 130 wherever it strikes: the sweep can be continued."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            fail("Interrupted.", 130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ditlaw")
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries have to say.")
@click.option("-q", "--quiet", is_flag=True, help="Show errors and the result alone.")
@click.option("--no-color", is_flag=True, help="No colours; the environment variable NO_COLOR does the same.")
@click.pass_context
def main(context: click.Context, verbose: bool, quiet: bool, no_color: bool) -> None:
    """Scaling laws for diffusion transformers: plan a sweep, run it, fit the law.

    \b
    ditlaw plan sweeps/quickstart.yaml      what it will cost
    ditlaw run sweeps/quickstart.yaml       train, measure, fit, report
    ditlaw fit results/quickstart --law isoflop --arm mup

    \b
    Exit codes
      0    done
      1    some trials could not be run, or a server did not take everything
      2    bad input: nothing was written
      130  interrupted: the same command goes on from there

    Every command has examples in its own help: ditlaw COMMAND --help
    """
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other; give one.")
    be_quiet(context, quiet)
    atexit.register(gc.freeze)  # else Python looks for garbage once more as it ends: 2 s after a run
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    if no_color:
        os.environ["NO_COLOR"] = "1"
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the processes that are started


for command in (plan, schema, suggest, predict, simulate, run, submit, status, logs, cancel, retry, sync, compact):
    main.add_command(command)
for command in (
    completion,
    fit,
    report,
    data,
    encoders,
    evaluate,
    sample,
    noise,
    coord_check,
    solver_statistics,
    concepts,
    bench,
    soak,
):
    main.add_command(command)
