"""What the command says of itself: examples, exit codes, completion, and no chatter of libraries."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from orchestrator.cli import main

ROOT = click.Context(main, info_name="ditlaw")


@pytest.mark.parametrize("name", sorted(main.list_commands(ROOT)))
def test_every_command_has_an_example_that_parses(name):
    command = main.get_command(ROOT, name)
    assert command is not None
    text = command.get_help(click.Context(command, parent=ROOT, info_name=name))
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith(f"ditlaw {name} ")]
    assert examples, f"ditlaw {name} --help shows no example"
    for example in examples:
        words = example.partition(" > ")[0].partition(" >> ")[0].split()[2:]
        with click.Context(command, parent=ROOT, info_name=name) as context:
            command.parse_args(context, words)


def test_the_help_tells_the_exit_codes():
    shown = CliRunner().invoke(main, ["--help"]).output
    for code, words in ((0, "done"), (1, "could not be run"), (2, "bad input"), (130, "interrupted")):
        assert any(line.split()[:1] == [str(code)] and words in line for line in shown.splitlines())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_the_program(shell):
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert "_DITLAW_COMPLETE" in done.output


def test_verbose_and_quiet_exclude_each_other():
    done = CliRunner().invoke(main, ["--verbose", "--quiet", "schema"])
    assert done.exit_code == 2
    assert "exclude each other" in done.output


def test_colours_can_be_left_out(monkeypatch):
    from rich.console import Console

    monkeypatch.delenv("NO_COLOR", raising=False)
    CliRunner().invoke(main, ["--no-color", "schema"])
    assert Console(force_terminal=True).no_color


def test_help_and_plan_say_nothing_on_the_error_stream():
    for words in (["--help"], ["plan", "sweeps/smoke.yaml", "--from-scratch", "--json"]):
        done = subprocess.run(
            [sys.executable, "-W", "default", "-m", "orchestrator.cli", *words], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
