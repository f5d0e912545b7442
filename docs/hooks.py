"""Pages that are made from the code when the documentation is built: keys of a sweep, commands, columns of results."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from orchestrator.cli import main
from orchestrator.results.schema import SCHEMA_VERSION, SCHEMAS
from orchestrator.spec.sweep import Sweep


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and what README says as the home page."""
    for name, text in (
        ("sweep-reference.md", sweep_reference()),
        ("commands.md", commands()),
        ("columns.md", columns()),
    ):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links of the pages to files of the repository stay words: the site holds the documentation alone."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"`\1`", markdown)


def sweep_reference() -> str:
    """A section for each part of a sweep, a row for each of its keys."""
    schema = Sweep.model_json_schema()
    parts = ["# Every key of a sweep\n", "Made from the JSON schema that `ditlaw schema` prints.\n"]
    parts += _section("A sweep", schema)
    for name, part in sorted(schema.get("$defs", {}).items()):
        if part.get("properties"):
            parts += _section(name, part)
    return "\n".join(parts)


def _section(title: str, part: dict[str, Any]) -> Iterator[str]:
    yield f"\n## {title}\n"
    yield f"{_cell(part.get('description', ''))}\n"
    yield "| key | what it holds | default | |"
    yield "|---|---|---|---|"
    for name, key in part.get("properties", {}).items():
        default = "**required**" if name in part.get("required", ()) else f"`{key.get('default')}`"
        yield f"| `{name}` | {_kind(key)} | {_cell(default)} | {_cell(key.get('description', ''))} |"


def _kind(key: dict[str, Any]) -> str:
    """The type of a key in words, with links to the sections it may hold."""
    if "$ref" in key:
        name = key["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in key:
            return " or ".join(dict.fromkeys(_kind(one) for one in key[several]))
    if "const" in key:
        return f"`{key['const']}`"
    if "enum" in key:
        return " or ".join(f"`{value}`" for value in key["enum"])
    if key.get("type") == "array":
        return f"list of {_kind(key.get('items', {}))}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = ", ".join(f"{sign} {key[name]:g}" for name, sign in signs.items() if name in key)
    named = ", ".join(f"`{name}`" for name in key.get("properties", {}))
    kind = {"object": f"map of {named}" if named else "map", "null": "nothing"}.get(
        key.get("type", ""), key.get("type", "any")
    )
    return f"{kind} {bounds}".strip()


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def columns() -> str:
    """The tables of a results folder, a row a column."""
    parts = [f"# Columns of a results folder\n\nVersion {SCHEMA_VERSION} of the schema."]
    for name, schema in SCHEMAS.items():
        parts.append(f"\n## {name}\n\n| column | type | |\n|---|---|---|")
        parts += [f"| `{field.name}` | {field.type} | {'may be empty' if field.nullable else ''} |" for field in schema]
    return "\n".join(parts) + "\n"


def commands() -> str:
    """The help of every command."""
    parts = ["# Commands\n", "What `ditlaw COMMAND --help` says.\n"]
    parts += [
        f"```text\n{text}\n```\n" if title is None else f"## {title}\n\n```text\n{text}\n```\n"
        for title, text in _helps()
    ]
    return "\n".join(parts)


def _helps() -> Iterator[tuple[str | None, str]]:
    root = click.Context(main, info_name="ditlaw")
    yield None, main.get_help(root)
    for name in main.list_commands(root):
        command = main.get_command(root, name)
        assert command is not None
        yield f"ditlaw {name}", command.get_help(click.Context(command, parent=root, info_name=name))
