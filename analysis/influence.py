"""Leave-k-out: which trial, and which pair of trials, moves an exponent most, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.bootstrap import Interval
from analysis.fitting import Fit
from analysis.isoflop import IsoflopFit
from analysis.laws import Array
from analysis.points import trial_index
from analysis.refitting import Refitter
from analysis.solver import HUBER_DELTA

MOST_REFITS = 300
"""Trials that are each left out by a refit; of more, those whose first-order influence is largest."""
MOST_CELLS = 600_000
"""Refits times points beyond which fewer trials are left out by a refit."""
PAIR_CANDIDATES = 12
"""Trials of largest influence in one direction among which every pair is left out by a refit."""


@dataclass(frozen=True, kw_only=True)
class Influence:
    """What leaving out one trial, and two, does to one exponent."""

    exponent: str
    value: float
    """The exponent with all trials."""
    trial: str
    without: float
    """The exponent without `trial`, the one that moves it most."""
    pair: tuple[str, str] | None
    pair_without: float | None
    cook_distance: float | None
    """Squared move over the estimate's variance, (value - without)^2 / se^2; None without an interval. Above 1 the
    trial moves the estimate beyond one standard error."""
    num_trials: int

    @property
    def change(self) -> float:
        return self.without - self.value

    @property
    def pair_change(self) -> float | None:
        return None if self.pair_without is None else self.pair_without - self.value

    def sentence(self) -> str:
        text = f"influence: without {self.trial}, {self.exponent} is {self.without:.4g} ({self.change:+.2g})"
        if self.pair is not None and self.pair_without is not None and self.pair_change is not None:
            one, two = self.pair
            text += f"; without {one} and {two}, {self.pair_without:.4g} ({self.pair_change:+.2g})"
        return text

    def breaks(self, interval: Interval | None) -> bool:
        """Whether one trial alone carries the exponent out of its 95% interval."""
        return interval is not None and not interval[0] <= self.without <= interval[1]


Refit = Callable[[Array], dict[str, Array]]
"""Exponents of shape (batch,) for weights of shape (batch, n)."""


def law_influence(
    fit: Fit, x: Array, y: Array, frame: pd.DataFrame, delta: float = HUBER_DELTA, sd: Array | None = None
) -> list[Influence]:
    """Of a law's exponents; `frame` has row and perhaps trial_id of the points. Empty where there is no fit."""
    if not fit.succeeded or fit.is_degenerate:
        return []
    again = Refitter(fit, x, y, delta, sd)
    exponents = {name: fit.params[name] for name in fit.law.exponents}

    def refit(weights: Array) -> dict[str, Array]:
        solved = again.solve(weights=weights)
        return {name: solved[name] for name in exponents}

    spread = {name: _deviation(fit.draws.get(name)) for name in exponents}
    return _influence(exponents, refit, again.one_step(), frame, spread)


def isoflop_influence(fit: IsoflopFit, frame: pd.DataFrame) -> list[Influence]:
    """Of the exponent of N*(C); `frame` has params, loss, budget and row of the rows that were fitted.

    The sizes that a budget's parabola goes through stay those of the whole fit.
    """
    if not fit.params or len(fit.bracketed) < 3:
        return []
    minima = {m.flops: m for m in fit.bracketed}
    near = [
        frame[
            ((frame["budget"] / flops - 1).abs() < 0.01)
            & frame["params"].between(m.sizes[0] * 0.999, m.sizes[1] * 1.001)
        ]
        for flops, m in minima.items()
    ]
    rows = pd.concat(near)
    ends = np.cumsum([len(part) for part in near])
    log_c = np.log(np.array(list(minima)))

    def refit(weights: Array) -> dict[str, Array]:
        best = np.stack(
            [
                _vertices(part, weights[:, end - len(part) : end], minima[flops].centre)
                for part, end, flops in zip(near, ends, minima, strict=True)
            ],
            axis=1,
        )
        return {"N_exponent": _slopes(log_c, best)}

    lever = (log_c - log_c.mean()) / np.sum((log_c - log_c.mean()) ** 2)
    alone = [
        weight * (_vertices(part, 1 - np.eye(len(part)), m.centre) - np.log(m.params or np.nan))
        for weight, part, m in zip(lever, near, minima.values(), strict=True)
    ]
    shifts = {"N_exponent": np.concatenate(alone)}
    spread = {"N_exponent": _deviation(fit.draws.get("N_exponent"))}
    return _influence({"N_exponent": fit.params["N_exponent"]}, refit, shifts, rows, spread)


def _vertices(group: pd.DataFrame, weights: Array, centre: float) -> Array:
    """log N at the minimum of weighted parabolas, shape (batch,); NaN where they have none within the sizes."""
    u = np.log(group["params"].to_numpy(dtype=float)) - centre
    X = np.vander(u, 3, increasing=True)
    gram = (weights @ (X[:, :, None] * X[:, None, :]).reshape(len(u), 9)).reshape(-1, 3, 3)
    moment = weights @ (X * group["loss"].to_numpy(dtype=float)[:, None])
    solved = (np.linalg.pinv(gram, hermitian=True) @ moment[:, :, None])[:, :, 0]
    c1, c2 = solved[:, 1], solved[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -c1 / (2 * c2)
        return np.where((c2 > 0) & (vertex > u.min()) & (vertex < u.max()), vertex + centre, np.nan)


def _slopes(x: Array, y: Array) -> Array:
    """Least-squares slopes of rows of y (batch, n) on x, over the entries that are known; NaN below two."""
    known = np.isfinite(y)
    count = known.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        dx = np.where(known, x - (np.where(known, x, 0).sum(axis=1) / count)[:, None], 0.0)
        return np.asarray((dx * np.where(known, y, 0.0)).sum(axis=1) / (dx**2).sum(axis=1))


def _influence(
    exponents: dict[str, float],
    refit: Refit,
    shifts: dict[str, Array],
    frame: pd.DataFrame,
    spread: dict[str, float | None],
) -> list[Influence]:
    """For each exponent the trial and the pair that move it most; `shifts` are the rows' first-order moves."""
    units = trial_index(frame.get("trial_id"), len(frame))
    names = _unit_names(frame, units)
    if len(names) < 3:
        return []
    chosen = _candidates(shifts, units, len(names), min(MOST_REFITS, max(6, MOST_CELLS // len(units))))
    alone = refit(_without(units, [(unit,) for unit in chosen]))
    found = []
    for name, value in exponents.items():
        moves = np.asarray(alone[name]) - value
        if not np.isfinite(moves).any():
            continue
        most = int(np.nanargmax(np.abs(moves)))
        pair, pair_without = _worst_pair(name, value, refit, moves, chosen, units)
        scale = spread[name]
        found.append(
            Influence(
                exponent=name,
                value=value,
                trial=names[chosen[most]],
                without=float(value + moves[most]),
                pair=None if pair is None else (names[pair[0]], names[pair[1]]),
                pair_without=pair_without,
                cook_distance=float((moves[most] / scale) ** 2) if scale else None,
                num_trials=len(names),
            )
        )
    return found


def _unit_names(frame: pd.DataFrame, units: NDArray[np.int64]) -> list[str]:
    """A trial by its id, a row of a table without trials by its number."""
    rows = frame["row"].to_numpy() if "row" in frame else np.arange(1, len(frame) + 1)
    firsts = [int(np.flatnonzero(units == unit)[0]) for unit in range(int(units.max()) + 1)]
    if "trial_id" in frame:
        return [f"trial {str(frame['trial_id'].iloc[i])[:12]}" for i in firsts]
    return [f"row {rows[i]}" for i in firsts]


def _candidates(shifts: dict[str, Array], units: NDArray[np.int64], num_units: int, most: int) -> list[int]:
    """All units where they are few, else those whose summed first-order moves are largest for some exponent."""
    if num_units <= most:
        return list(range(num_units))
    each = most // len(shifts)
    totals = [np.abs(np.bincount(units, np.nan_to_num(shift), num_units)) for shift in shifts.values()]
    return sorted({int(unit) for total in totals for unit in np.argsort(-total)[:each]})


def _worst_pair(
    name: str, value: float, refit: Refit, moves: Array, chosen: list[int], units: NDArray[np.int64]
) -> tuple[tuple[int, int] | None, float | None]:
    """Every pair among the trials that pull hardest one way, by refits: moves of single trials nearly add up."""
    order = [int(i) for i in np.argsort(np.nan_to_num(moves))]
    half = min(PAIR_CANDIDATES if len(units) < 2000 else PAIR_CANDIDATES // 2, len(order) // 2 + 1)
    pairs = sorted({tuple(sorted(p)) for side in (order[:half], order[-half:]) for p in combinations(side, 2)})
    if not pairs or len(moves) < 4:
        return None, None
    left_out = [(chosen[i], chosen[j]) for i, j in pairs]
    values = np.asarray(refit(_without(units, left_out))[name])
    if not np.isfinite(values).any():
        return None, None
    most = int(np.nanargmax(np.abs(values - value)))
    return left_out[most], float(values[most])


def _without(units: NDArray[np.int64], left_out: Sequence[tuple[int, ...]]) -> Array:
    """Weights of shape (len(left_out), n): 0 in the rows of the units that are left out, else 1."""
    return np.stack([1.0 - np.isin(units, group) for group in left_out])


def _deviation(draws: Array | None) -> float | None:
    """Robust standard deviation of draws; None without any."""
    if draws is None or not np.isfinite(draws).any():
        return None
    low, high = np.nanpercentile(draws, [15.87, 84.13])
    return float(high - low) / 2 or None
