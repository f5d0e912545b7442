"""Laws from a table of runs, in three lines:

    from analysis import load, fit_surface
    fit = fit_surface(load("runs.csv"))
    fit.plot()

Names are loaded when they are first used: importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.api import compare, fit, fit_isoflop, fit_power, fit_surface, load, transfer_of_learning_rate
    from analysis.comparison import Comparison
    from analysis.drawing import save
    from analysis.loading import Table
    from analysis.result import Result
    from analysis.transfer import RateTransfer

__all__ = [
    "Comparison",
    "RateTransfer",
    "Result",
    "Table",
    "compare",
    "fit",
    "fit_isoflop",
    "fit_power",
    "fit_surface",
    "load",
    "save",
    "transfer_of_learning_rate",
]

_HOMES = {
    "Comparison": "analysis.comparison",
    "RateTransfer": "analysis.transfer",
    "Result": "analysis.result",
    "Table": "analysis.loading",
    "save": "analysis.drawing",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "analysis.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
