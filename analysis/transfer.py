"""Learning-rate transfer: how the best learning rate drifts with width, and the loss that a transferred one costs.

The optima are those of `analysis.learning_rate`. Under µP the drift should be nil (Yang et al. 2022, arXiv 2203.03466,
section 4).
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.bootstrap import Interval
from analysis.frontier import Level
from analysis.learning_rate import NUM_RESAMPLES, RateFit, RateOptimum, base_of, fit_rates
from analysis.magnitudes import with_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class RateTransfer:
    """How the best learning rate of an arm moves with width (or with parameters) at one budget."""

    arm: str
    variable: str
    """width or params."""
    level: Level
    optima: list[RateOptimum]
    drift_per_doubling: float | None
    """Change of log2 of the best learning rate when the width doubles: 0 transfers, -1 halves it."""
    drift_ci95: Interval | None
    reason: str | None

    @property
    def base(self) -> RateOptimum | None:
        """The smallest width with a best learning rate: where one would be tuned."""
        return base_of(self.optima)

    @property
    def transfers(self) -> bool | None:
        """Whether the drift's interval holds 0; None where there is none."""
        return None if self.drift_ci95 is None else self.drift_ci95[0] <= 0 <= self.drift_ci95[1]

    def plot(self) -> Figure:
        """Loss against learning rate by width, and the optima against width."""
        from analysis.rate_plots import learning_rate_fans

        return learning_rate_fans([self])

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def _repr_html_(self) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in self.sentences()) + "</ul>"

    def sentences(self) -> list[str]:
        """What was found, in words."""
        said = [self._drift()]
        base = self.base
        for optimum in self.optima:
            if base is not None and optimum is not base and optimum.transferred is not None:
                cost, sure = optimum.transferred, optimum.transferred_ci95
                spread = f" (95% {sure[0]:.2%} to {sure[1]:.2%})" if sure else ""
                told = f": {cost}" if cost.loss is None else f", costs {cost.told(' of loss')}{spread}"
                said.append(
                    f"{self.arm}: at {self.variable} {with_unit(optimum.scale)} the best rate of "
                    f"{with_unit(base.scale)}, {base.rate:.3g}{told}"
                )
        return said

    def _drift(self) -> str:
        if self.drift_per_doubling is None:
            return f"{self.arm}: no drift of the best learning rate: {self.reason}"
        band = f" (95% {self.drift_ci95[0]:+.3f} to {self.drift_ci95[1]:+.3f})" if self.drift_ci95 else ""
        return (
            f"{self.arm}: per doubling of {self.variable} the best learning rate moves by "
            f"{self.drift_per_doubling:+.3f} octaves{band}, a factor of {2**self.drift_per_doubling:.3f}"
        )


def learning_rate_transfer(
    rows: pd.DataFrame, arm: str, diverged: pd.DataFrame | None = None, *, num_resamples: int = NUM_RESAMPLES
) -> RateTransfer | None:
    """Of one arm's rows, as `fit_rates`; None where there is no size with 3 learning rates."""
    fit = fit_rates(rows, diverged, num_resamples=num_resamples)
    return None if fit is None else as_transfer(fit, arm)


def as_transfer(fit: RateFit, arm: str) -> RateTransfer:
    """The fitted optima as a question of transfer."""
    return RateTransfer(
        arm=arm,
        variable=fit.variable,
        level=fit.level,
        optima=fit.optima,
        drift_per_doubling=fit.params.get("rate_exponent"),
        drift_ci95=fit.ci95.get("rate_exponent"),
        reason=None if fit.params else fit.reason,
    )
