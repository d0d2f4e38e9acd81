"""The `holdfast` command. What is heavy is imported inside the command that needs it: its start must be quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from orchestrator.cli import cluster, faults, incidents, nodes, passing, runs, spec, watch
from orchestrator.cli.errors import CliError, Exit

app = typer.Typer(
    name="holdfast",
    help="Keeps a large training run alive: takes bad nodes out, brings the run back, accounts for every second.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (cluster, spec, runs, watch, passing):
    module.register(app)
app.add_typer(nodes.app, name="node")
app.add_typer(incidents.app, name="incident")
app.add_typer(faults.app, name="fault")


def default_state_dir() -> Path:
    return Path(os.environ.get("HOLDFAST_STATE") or Path.home() / ".holdfast" / "default")


@app.callback()
def settings(
    ctx: typer.Context,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="DIR", help="Folder of the cluster's journal; $HOLDFAST_STATE or ~/.holdfast/default."
        ),
    ] = None,
) -> None:
    """Say which cluster is meant: each has a state folder of its own."""
    ctx.obj = (state or default_state_dir()).expanduser().absolute()


def main(args: list[str] | None = None) -> NoReturn:
    """Run a command line (sys.argv when None) and exit with a code of `Exit`."""
    try:
        app(args, prog_name="holdfast")
    except CliError as error:
        print(f"error: {error.message}" if ": error: " not in error.message else error.message, file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)
    sys.exit(Exit.OK)


if __name__ == "__main__":
    main()
