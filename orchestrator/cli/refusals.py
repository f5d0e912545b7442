"""Bad input, told to the user: exit code 2, and a message without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click


class Refused(click.ClickException):
    """Bad input: exit code 2 and the message alone."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(self.message, err=True)


@contextmanager
def refusing() -> Iterator[None]:
    """ValueError and OSError (a folder, a disk) are the user's: show them without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error


def fail(message: str, code: int = 1) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)
