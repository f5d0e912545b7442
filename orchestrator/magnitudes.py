"""Numbers as people read them."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}"


def duration(seconds: float) -> str:
    """Seconds in the largest unit that suits, as 12 s, 3.5 min, 2.1 h, 4.0 days."""
    for unit, length, limit in (("s", 1.0, 120), ("min", 60.0, 7200), ("h", 3600.0, 172_800)):
        if seconds < limit:
            return f"{seconds / length:.0f} s" if unit == "s" else f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def size(num_bytes: float) -> str:
    """Bytes as 12 MB, 3.4 GB."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= length:
            return f"{num_bytes / length:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def count(number: float) -> str:
    """A number of things as 512, 1.2k, 3.4M, 5.6B."""
    for unit, length in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= length:
            return f"{number / length:.3g}{unit}"
    return f"{number:.0f}"
