"""Values of an axis: a number, a list, or a rule that gives a list.

1e-3                                  one value
[1e-3, 2e-3]                          these
{from: 1e-4, to: 1e-2, count: 5}      geometric, both ends included
{from: 1e-4, to: 1e-2, factor: 2}     geometric from `from`, by `factor`, not beyond `to`
{from: 0, to: 0.3, count: 4, scale: linear}
{around: 1e-2, factor: 1.4142, each_side: 3}   geometric, centred: 7 values
"""

from __future__ import annotations

import math
from typing import Any

MAX_VALUES = 100_000
RULES = "{from, to, count}, {from, to, factor} or {around, factor, each_side}"


def spread(value: Any) -> Any:
    """The list that `value` stands for: a scalar becomes a list of one, a rule is worked out, a list stays.

    Raises:
        ValueError: a rule lacks a key, has one too many, or gives no value or too many.
    """
    if isinstance(value, dict):
        return _of_rule(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def spread_seeds(value: Any) -> Any:
    """The list of seeds that `value` stands for: {from, to} is every whole number, both ends included, {count} as many
    from 0 on; a list stays.

    Raises:
        ValueError: it is one number, which could mean either; a rule lacks a key, has one too many or gives too many.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"got {value}; wanted a list, as [{value}] for this one seed, or {{count: {max(1, value)}}}")
    if not isinstance(value, dict):
        return value
    if set(value) == {"count"}:
        return list(range(_count(value, "count", 1)))
    if set(value) == {"from", "to"}:
        low, high = _whole(value, "from", 0), _whole(value, "to", 0)
        if low > high:
            raise ValueError(f"got from {low} to {high}; wanted from <= to")
        return list(range(low, low + _limited(high - low + 1)))
    raise ValueError(f"got a rule of {', '.join(map(str, value)) or 'nothing'}; wanted {{from, to}} or {{count}}")


def _of_rule(rule: dict[str, Any]) -> list[float]:
    keys = set(rule)
    if keys == {"around", "factor", "each_side"}:
        return _around(_number(rule, "around"), _factor(rule), _count(rule, "each_side", 0))
    if keys - {"scale"} == {"from", "to", "count"}:
        return _between(rule)
    if keys == {"from", "to", "factor"}:
        low, high = _ends(rule)
        steps = math.floor(math.log(high / low) / math.log(_factor(rule)) * (1 + 1e-12) + 1e-9)
        return _around(low, _factor(rule), _limited(steps))[steps:]
    raise ValueError(f"got a rule of {', '.join(map(str, rule)) or 'nothing'}; wanted {RULES}")


def _between(rule: dict[str, Any]) -> list[float]:
    count, scale = _count(rule, "count", 2), rule.get("scale", "log")
    if scale not in ("log", "linear"):
        raise ValueError(f"scale is {scale!r}; wanted log or linear")
    low, high = _ends(rule, positive=scale == "log")
    shares = [index / (count - 1) for index in range(count)]
    if scale == "linear":
        return [low + (high - low) * share for share in shares]
    # The ends are exact; what lies between is rounded to 12 digits, so that an identity never hangs on the last bit.
    inner = [_rounded(low * (high / low) ** share) for share in shares[1:-1]]
    return [low, *inner, high]


def _around(centre: float, factor: float, each_side: int) -> list[float]:
    if centre <= 0:
        raise ValueError(f"the middle is {centre:g}; wanted a number above 0")
    values = [_rounded(centre * factor**power) for power in range(-each_side, each_side + 1)]
    values[each_side] = centre
    return values


def _ends(rule: dict[str, Any], positive: bool = True) -> tuple[float, float]:
    low, high = _number(rule, "from"), _number(rule, "to")
    if not low < high or (positive and low <= 0):
        raise ValueError(f"got from {low:g} to {high:g}; wanted {'0 < ' if positive else ''}from < to")
    return low, high


def _factor(rule: dict[str, Any]) -> float:
    factor = _number(rule, "factor")
    if factor <= 1:
        raise ValueError(f"factor is {factor:g}; wanted more than 1")
    return factor


def _number(rule: dict[str, Any], key: str) -> float:
    value = rule[key]
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key} is {value!r}; wanted a finite number")
    return number


def _count(rule: dict[str, Any], key: str, least: int) -> int:
    return _limited(_whole(rule, key, least))


def _whole(rule: dict[str, Any], key: str, least: int) -> int:
    number = _number(rule, key)
    if number < least or number != int(number):
        raise ValueError(f"{key} is {rule[key]!r}; wanted a whole number of at least {least}")
    return int(rule[key]) if isinstance(rule[key], int) else int(number)


def _limited(count: int) -> int:
    if count > MAX_VALUES:
        raise ValueError(f"gives {count:,} values; wanted at most {MAX_VALUES:,}")
    return count


def _rounded(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("gives values that are no finite numbers; shorten the range")
    return float(f"{value:.12g}")
