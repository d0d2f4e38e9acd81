"""How answers leave the CLI: tables for people, JSON or YAML for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.client import Client
from orchestrator.cli.errors import CliError

if TYPE_CHECKING:
    from rich.console import Console


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[Format, typer.Option("-o", "--output", help="How to print the answer.", show_default=True)]


def state_dir(ctx: typer.Context) -> Path:
    """The folder of the global --state option."""
    return ctx.find_root().obj


def client(ctx: typer.Context) -> Client:
    """A client of the daemon that owns the state folder."""
    from orchestrator.node.paths import PathError, runtime_dir

    try:
        return Client(runtime_dir(state_dir(ctx)) / "api.sock")
    except (PathError, OSError) as error:
        raise CliError(f"The folder of the daemon's socket can't be used: {error}.") from None


def console() -> Console:
    """Of stdout. A pipe gets 160 columns, not 80, so that what `grep` sees is not folded."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 160
    return Console(width=width, highlight=False, emoji=False, markup=False)


def show(answer: Any, form: Format, table: Callable[[Any], Any]) -> None:
    """Print the answer; `table` makes what rich prints of it."""
    if form is Format.JSON:
        import json

        print(json.dumps(answer, indent=2, ensure_ascii=False))
    elif form is Format.YAML:
        import yaml

        print(yaml.safe_dump(answer, sort_keys=False, allow_unicode=True), end="")
    else:
        console().print(table(answer))


def say(sentence: str) -> None:
    print(sentence)


def user() -> str:
    """Who does it, for the journal."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in passwd, as in some containers
        return f"uid {os.getuid()}"
