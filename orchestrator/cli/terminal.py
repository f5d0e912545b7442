"""The terminal that commands print tables and figures to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


def wide_console(columns: int) -> Console:
    """A console for tables: as wide as the terminal, and `columns` wide where there is none, which would cut at 80."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=columns)


def show_figures(figures: dict[str, Any], as_json: bool) -> None:
    """A flat object: as JSON for programs, a line a figure for people."""
    if as_json:
        click.echo(json.dumps(figures))
        return
    width = max(map(len, figures))
    for name, value in figures.items():
        click.echo(f"{name:{width}}  {value:.4g}" if isinstance(value, float) else f"{name:{width}}  {value}")
