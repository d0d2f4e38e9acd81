"""holdfast fault list, inject: break things on purpose."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.errors import CliError, Exit
from orchestrator.cli.output import Format, Output, client, say, show, user

app = typer.Typer(help="Fault tests: break a worker, a GPU or a node, and see what comes of it.", no_args_is_help=True)


@app.command("list")
def list_faults(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Faults that can be injected, and those that were."""
    from orchestrator.cli import tables

    show(client(ctx).get("/v1/faults"), output, tables.faults)


@app.command()
def inject(
    ctx: typer.Context,
    node: Annotated[
        str, typer.Argument(metavar="[NODE]", help="A node; may be left out with --run.", show_default=False)
    ] = "",
    xid: Annotated[int | None, typer.Option(min=1, help="The health monitor reads this XID.")] = None,
    gpu: Annotated[int, typer.Option(min=0, help="Of which GPU, with --xid.")] = 0,
    kill_worker: Annotated[bool, typer.Option("--kill-worker", help="SIGKILL to a trainer.")] = False,
    stop_worker: Annotated[bool, typer.Option("--stop-worker", help="SIGSTOP to a trainer: it hangs.")] = False,
    kill_raylet: Annotated[
        bool, typer.Option("--kill-raylet", help="SIGKILL to the raylet: the node is lost.")
    ] = False,
    stop_raylet: Annotated[
        bool, typer.Option("--stop-raylet", help="SIGSTOP to the raylet: the node freezes.")
    ] = False,
    kill_supervisor: Annotated[
        bool, typer.Option("--kill-supervisor", help="SIGKILL to the node's supervisor.")
    ] = False,
    run: Annotated[str | None, typer.Option(help="The run whose rank is meant.")] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="The rank, with --run; 0 by default.")] = None,
) -> None:
    """Begin a fault test on a node, or on the node that holds a rank of a run."""
    flags = {
        "kill_worker": kill_worker,
        "stop_worker": stop_worker,
        "kill_raylet": kill_raylet,
        "stop_raylet": stop_raylet,
        "kill_supervisor": kill_supervisor,
        "xid": xid is not None,
    }
    chosen = [name for name, given in flags.items() if given]
    if len(chosen) != 1:
        options = ", ".join("--" + name.replace("_", "-") for name in flags)
        raise CliError("Give exactly one fault.", f"one of {options}", Exit.USAGE)
    if not node and run is None:
        raise CliError("Say where: a NODE, or --run RUN with --rank R.", code=Exit.USAGE)
    if rank is not None and run is None:
        raise CliError("--rank needs --run.", code=Exit.USAGE)
    body: dict[str, Any] = {"fault": chosen[0], "node": node, "who": user()}
    if xid is not None:
        body["details"] = {"xid": xid, "gpu": gpu}
    if run is not None:
        body |= {"run": run, "rank": rank or 0}
    say(client(ctx).post("/v1/faults", body)["reason"])
