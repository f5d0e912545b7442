"""How much a command says besides its result."""

from __future__ import annotations

import click

_QUIET = "ditlaw.quiet"


def be_quiet(context: click.Context, quiet: bool) -> None:
    """Remember `--quiet` for the commands below `context`."""
    context.meta[_QUIET] = quiet


def is_quiet() -> bool:
    """Whether progress is left out."""
    return bool(click.get_current_context().meta.get(_QUIET))
