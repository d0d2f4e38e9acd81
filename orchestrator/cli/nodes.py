"""holdfast node list, show, quarantine, readmit."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.client import quoted
from orchestrator.cli.output import Format, Output, client, say, show, user

app = typer.Typer(help="Nodes: which are healthy, which are out and why.", no_args_is_help=True)
Node = Annotated[str, typer.Argument(metavar="NODE", help="A node's name.", show_default=False)]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, for the journal.")]


@app.command("list")
def list_nodes(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """All nodes."""
    from orchestrator.cli import tables

    show(client(ctx).get("/v1/nodes"), output, lambda a: tables.nodes(a["nodes"], a["now_s"]))


@app.command("show")
def show_node(ctx: typer.Context, node: Node, output: Output = Format.TABLE) -> None:
    """One node, with what its health checks found."""
    from orchestrator.cli import tables

    show(client(ctx).get(f"/v1/nodes/{quoted(node)}"), output, tables.node)


@app.command()
def quarantine(ctx: typer.Context, node: Node, why: Why = "") -> None:
    """Take a node out. A run on it moves to a spare."""
    say(client(ctx).post(f"/v1/nodes/{quoted(node)}/quarantine", {"who": user(), "why": why})["reason"])


@app.command()
def readmit(ctx: typer.Context, node: Node, why: Why = "") -> None:
    """Bring a node back. It is probed before it works again."""
    say(client(ctx).post(f"/v1/nodes/{quoted(node)}/readmit", {"who": user(), "why": why})["reason"])
