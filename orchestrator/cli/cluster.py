"""holdfast up, down, demo: the life of a cluster and its daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.errors import CliError, Exit
from orchestrator.cli.output import state_dir


def register(app: typer.Typer) -> None:
    app.command("up")(start)
    app.command("down")(stop)
    app.command()(demo)


def start(
    ctx: typer.Context,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster that runs already; else one is simulated here.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that work, of a simulated cluster.")] = 4,
    spares: Annotated[int, typer.Option(min=0, help="Nodes that wait, of a simulated cluster.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each simulated node.")] = 8,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST", help="Where the nodes of --address reach the daemon.")
    ] = None,
    allow_injection: Annotated[
        bool, typer.Option("--allow-injection", help="Allow fault tests on the real nodes of --address.")
    ] = False,
) -> None:
    """Start a daemon, and a cluster for it unless --address names one."""
    from orchestrator.daemon_control import ControlError, up

    try:
        up(
            state_dir(ctx), address=address, nodes=nodes, spares=spares, gpus=gpus, listen_host=listen,
            allow_injection=allow_injection,
        )  # fmt: skip
    except ControlError as error:
        raise CliError(str(error)) from None


def stop(ctx: typer.Context) -> None:
    """Stop the daemon, the trainers and the cluster it started."""
    if not state_dir(ctx).is_dir():
        raise CliError(f"There is no cluster in {state_dir(ctx)}.", "name its folder by --state", Exit.NO_DAEMON)
    from orchestrator.daemon_control import ControlError, down

    try:
        down(state_dir(ctx))
    except ControlError as error:
        raise CliError(str(error)) from None


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report goes.")] = Path("holdfast-demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to train.", show_default=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster up afterwards.")] = False,
) -> None:
    """Train a small hybrid model on simulated nodes of this machine, break it on purpose, report what was lost."""
    from orchestrator.demo.main import main

    raise typer.Exit(main(out.absolute(), keep=keep) if steps is None else main(out.absolute(), steps=steps, keep=keep))
