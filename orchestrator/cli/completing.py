"""`completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a script with which SHELL completes ditlaw's commands and options.

    \b
    ditlaw completion bash >> ~/.bashrc
    ditlaw completion zsh >> ~/.zshrc
    ditlaw completion fish > ~/.config/fish/completions/ditlaw.fish
    """
    root = click.get_current_context().find_root().command
    found = get_completion_class(shell)
    assert found is not None, "click knows the shells that are offered"
    click.echo(found(root, {}, "ditlaw", "_DITLAW_COMPLETE").source())
