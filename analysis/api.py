"""The Python interface: load a table, fit a law to it, compare its arms. `analysis` exports these names."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.comparison import Comparison, compare_arms
from analysis.estimating import Floor, Options
from analysis.fit_table import fit_loaded
from analysis.fitting import NUM_RESAMPLES
from analysis.loading import Table, load_table
from analysis.recipes import IntervalMethod, Recipe
from analysis.result import Result
from analysis.transfer import RateTransfer, learning_rate_transfer
from orchestrator.results.location import Location

Source = Table | Location | str | pd.DataFrame


def load(
    source: Location | str | pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    *,
    arm: str | None = None,
    loss: str | None = None,
    flops_rule: str | None = None,
    force: bool = False,
) -> Table:
    """Read runs from a CSV or Parquet file or folder, a results folder, or a frame.

    Args:
        source: where the runs are, one row a run (or a milestone of one).
        columns: which column holds `params`, `samples`, `flops`, `loss`; guessed by name where absent. `sd` names one
            of standard deviations of the loss: rows then count by how little noise they have.
        arm: the rows of this arm alone.
        loss: what to fit: `loss`, `fid` or `fd`; the first of them that is there by default.
        flops_rule: `6ND` derives one missing of params, samples, flops by C = 6 N D (Kaplan et al. 2020, arXiv
            2001.08361, section 2.1), `none` refuses to; by default it is derived and a warning says so.
        force: fit rows together that mix FLOP definitions, precisions, samplers or encoders, and leave out rows without
            positive numbers, with a warning for each.

    Raises:
        ValueError: the table cannot be read or used; says what was found, what was wanted, and the remedy.
    """
    return load_table(source, columns, arm, quantity=loss, flops_rule=flops_rule, force=force)


def fit_power(
    table: Source,
    *,
    target_flops: float | None = None,
    floor: Floor = "free",
    recipe: Recipe = "varpro",
    interval: IntervalMethod = "auto",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Result:
    """Fit y = A C^-beta + floor to the best run of each budget, or to every row where budgets hold one size each.

    Args:
        table: what `load` gave, or what it takes. C in FLOPs; y is the loss, FID or FD.
        target_flops: also predict y, and N* and D* by the best runs, at this many FLOPs.
        floor: `free`, and refused where the data do not identify it; `zero`; or the value it is held at.
        recipe: how the law is estimated: `varpro` is variable projection, then a Huber polish of log residuals
            (Hoffmann et al. 2022, arXiv 2203.15556, appendix D.3).
        interval: how the 95% intervals are made; `auto` chooses by the number of runs.
        num_resamples: resamples of the bootstrap, 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: fewer than 3 budgets, or the table does not hold what the law needs.
    """
    options = Options(recipe=recipe, interval=interval, floor=floor, num_resamples=num_resamples, seed=seed)
    return fit_loaded(_table(table), "power", target_flops, options)


def fit_surface(
    table: Source,
    *,
    target_flops: float | None = None,
    recipe: Recipe = "varpro",
    interval: IntervalMethod = "auto",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Result:
    """Fit L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv 2203.15556, equation 2, approach 3).

    N in parameters, D in samples (or tokens, whatever the table counts). `target_flops` adds N*, D* and L at that
    budget, with the FLOPs per sample that the table itself shows. Other arguments as for `fit_power`.

    Raises:
        ValueError: fewer than 3 sizes or numbers of samples, or fewer than 6 settings.
    """
    options = Options(recipe=recipe, interval=interval, num_resamples=num_resamples, seed=seed)
    return fit_loaded(_table(table), "surface", target_flops, options)


def fit(
    table: Source,
    law: str,
    *,
    target_flops: float | None = None,
    recipe: Recipe = "varpro",
    interval: IntervalMethod = "auto",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Result:
    """Fit any law of `ditlaw fit --law` by its name: power, surface, tied, kaplan, repeated, isoflop, learning-rate.

    docs/fitting.md has their equations and what identifies them. Arguments as for `fit_power`.

    Raises:
        ValueError: there is no such law, or the table does not hold what it needs.
    """
    options = Options(recipe=recipe, interval=interval, num_resamples=num_resamples, seed=seed)
    return fit_loaded(_table(table), law, target_flops, options)


def fit_isoflop(
    table: Source, *, target_flops: float | None = None, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Result:
    """Fit a parabola in log N at each budget, and N* and D* as powers of C through their minima.

    Hoffmann et al. 2022, arXiv 2203.15556, section 3.2, approach 2. Minima that the sizes run do not bracket are listed
    and not used. Other arguments as for `fit_power`.

    Raises:
        ValueError: fewer than 2 budgets with at least 3 sizes.
    """
    options = Options(num_resamples=num_resamples, seed=seed)
    return fit_loaded(_table(table), "isoflop", target_flops, options)


def compare(table: Source, first: str | None = None, second: str | None = None) -> Comparison:
    """Compare two arms: loss at equal sizes and budgets, compute multiplier m(C), tests of equal exponents and laws.

    m(C) C are the FLOPs that `second` needs to the loss that `first` reaches with C; above 1, `first` saves. By default
    the table's two arms in alphabetical order.

    Raises:
        ValueError: the table has no such arms, or an arm has no measurement.
    """
    table = _table(table)
    if first is None or second is None:
        if len(table.arms) != 2:
            raise ValueError(
                f"the table has the arms {', '.join(table.arms) or 'none (no column arm)'}; name the two to compare."
            )
        first, second = table.arms
    for arm in (first, second):
        table.only(arm)
    frame, said = table.rows("params", "flops", "loss")
    frame = frame.assign(arm=frame["arm"].astype(str))
    for arm in (first, second):
        if not (frame["arm"] == arm).any():
            raise ValueError(f"arm {arm!r} has no measurement to compare: every run of it diverged.")
    return compare_arms(frame, first, second, quantity=table.quantity).with_warnings([*table.warnings, *said])


def transfer_of_learning_rate(table: Source) -> list[RateTransfer]:
    """For each arm: the best learning rate of each width at the largest budget, its drift per doubling, and its cost.

    Needs columns learning_rate and width (or params) with at least 3 learning rates at 2 sizes; see
    `analysis.transfer.learning_rate_transfer`. Arms without them are left out.

    Raises:
        ValueError: no arm has enough learning rates.
    """
    table = _table(table)
    frame, _ = table.rows("params", "flops", "loss")
    arms = table.arms or ["the table"]
    found = []
    for arm in arms:
        mine = table.only(arm) if table.arms else table
        rows = frame.loc[frame.index.intersection(mine.frame.index)]
        transfer = learning_rate_transfer(rows, arm, mine.diverged)
        found += [transfer] if transfer is not None else []
    if not found:
        raise ValueError(
            "no arm has 3 learning rates at one size and budget; wanted a column learning_rate with a sweep of them."
        )
    return found


def _table(source: Source) -> Table:
    return source if isinstance(source, Table) else load_table(source)
