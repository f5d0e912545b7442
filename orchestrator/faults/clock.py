"""A wall clock that jumps, for this process only and for ditlaw's own code: what a time server or a person may do."""

from __future__ import annotations

import datetime as real
import sys
from types import ModuleType
from typing import Any


def jump(seconds: float) -> None:
    """From now on `datetime.now` is `seconds` off in every module of ditlaw that is loaded. Monotonic time is not."""
    by = real.timedelta(seconds=seconds)

    class Shifted(real.datetime):
        @classmethod
        def now(cls, tz: real.tzinfo | None = None) -> Any:
            return real.datetime.now(tz) + by

    for module in _own_modules():
        if getattr(module, "datetime", None) is not None and issubclass(module.datetime, real.datetime):
            module.__dict__["datetime"] = Shifted


def _own_modules() -> list[ModuleType]:
    return [module for name, module in sys.modules.items() if name.startswith("orchestrator.") and module is not None]
