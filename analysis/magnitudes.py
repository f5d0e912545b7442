"""Numbers as people read and write them: 25K, 2.5×10¹⁰, 13 min; "1.3B" and "params (M)" in other people's tables."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_FROM_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")

_LETTERS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_WORDS = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "mio": 1e6, "bn": 1e9}
_FLOPS = {"gflop": 1e9, "tflop": 1e12, "pflop": 1e15, "eflop": 1e18, "zflop": 1e21, "yflop": 1e24}
_DAYS = {"pf-day": 8.64e19, "pflop/s-day": 8.64e19, "petaflop/s-day": 8.64e19, "petaflop-day": 8.64e19}
SCALES = _LETTERS | _WORDS | _FLOPS | _DAYS
"""Unit, lower case and singular, to what it stands for; a PF-day is 1e15 FLOP/s for 86,400 s."""

_NOUNS = ("param", "parameter", "token", "image", "sample", "flop", "example")

_NUMBER = re.compile(
    r"""^\s*(?P<mantissa>
            [+-]?(?:\d{1,3}(?P<mark>[,'’ \u00a0\u2009\u202f])\d{3}(?:(?P=mark)\d{3})*|\d+(?:_\d{3})*)?
            (?:\.\d*)?(?:e[+-]?\d+)?)
        \s*(?:(?P<times>[×x*·]?)\s*10\s*(?:\^|\*\*)?\s*(?P<power>[+-]?\d+|[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?
        \s*(?P<unit>[a-z][a-z/ -]*)?\s*$""",
    re.IGNORECASE | re.VERBOSE,
)


def with_unit(value: float) -> str:
    """A count: 25K, 1.3M, 7B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def scientific(value: float) -> str:
    """A magnitude to three digits: 2.5×10¹⁰, 1.25×10¹⁰. 0 and what is not finite stand as they are."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    mantissa = mantissa.rstrip("0").rstrip(".")
    return power if mantissa == "1" else f"{mantissa}×{power}"


def coefficient(value: float) -> str:
    """A factor before a power: 89.66, 1.3×10⁴."""
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 else scientific(value)


def duration(hours: float) -> str:
    """A length of time, given in hours."""
    if hours < 1 / 30:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:,.1f} h"


def number_of(text: str) -> float:
    """The number a text means, else NaN.

    `1.3B`, `400M`, `1,300,000`, `1'300'000`, `6e18`, `6×10^18`, `3.2 EFLOPs`, `12 PF-days`.
    """
    match = _NUMBER.match(text)
    if match is None or not (match["mantissa"] or match["power"]):
        return float("nan")
    if match["power"] and bool(match["mantissa"]) != bool(match["times"]):
        return float("nan")  # "310^18" is not 3 × 10^18
    digits = (match["mantissa"] or "1").replace(match["mark"] or "_", "").replace("_", "")
    try:
        mantissa = float(digits)
    except ValueError:
        return float("nan")
    power = float(10.0 ** int(match["power"].translate(_FROM_SUPERSCRIPTS))) if match["power"] else 1.0
    scale = scale_of(match["unit"]) if match["unit"] else 1.0
    return mantissa * power * scale if scale is not None else float("nan")


def scale_of(unit: str) -> float | None:
    """What a unit stands for: `M`, `billions`, `B tokens`, `EFLOPs`, `PF-days`, `tokens` (1); None where it is none."""
    words = [word.rstrip("s") if len(word) > 1 else word for word in unit.lower().split()]
    if words and words[-1] in _NOUNS:
        words = words[:-1]
    if not words:
        return 1.0
    return SCALES.get(words[0]) if len(words) == 1 else None


def numbers_of(column: pd.Series) -> tuple[pd.Series, str | None]:
    """A column as floats, NaN where an entry is no number; and an entry that carried a unit, None where none did."""
    if pd.api.types.is_bool_dtype(column):
        return pd.Series(np.nan, index=column.index), None
    plain = pd.to_numeric(column, errors="coerce").astype(float)
    texts = column[plain.isna() & column.notna()].astype(str)
    known = {text: number_of(text) for text in texts.unique()}
    values = plain.copy()
    values[texts.index] = texts.map(known).astype(float)
    example = next((text for text, value in known.items() if np.isfinite(value)), None)
    return values, example
