"""What every fit has: its parameters or why there are none, and resamples of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from analysis.bootstrap import Interval, intervals, reaching
from analysis.laws import Array


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate, or why there is none: then `params` is empty. `draws` holds the resampled parameters by name."""

    params: dict[str, float]
    outcome: str
    """converged, at_bound, not_identified, starts_disagree or too_few_points."""
    reason: str | None
    """Why the outcome is not converged."""
    num_points: int
    draws: dict[str, Array] = field(default_factory=dict)
    rule: str = ""
    """How the intervals were made, in words."""
    starts_agree: float | None = None
    """Share of the starts that reached the best optimum; None where there is one optimum, as of a parabola."""

    @property
    def succeeded(self) -> bool:
        return bool(self.params)

    @property
    def ci95(self) -> dict[str, Interval | None]:
        """95% interval of each parameter; where resamples lie to one side of the estimate, it reaches to it."""
        if not self.draws:
            return dict.fromkeys(self.params)
        found = intervals(self.draws)
        return {name: reaching(band, self.params.get(name)) for name, band in found.items()}
