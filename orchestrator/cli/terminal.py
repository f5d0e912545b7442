"""The terminal that commands print tables to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def wide_console(columns: int) -> Console:
    """A console for tables: as wide as the terminal, and `columns` wide where there is none, which would cut at 80."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=columns)
