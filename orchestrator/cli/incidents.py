"""holdfast incident list, show."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.client import quoted
from orchestrator.cli.output import Format, Output, client, show

app = typer.Typer(help="Incidents: what went wrong, what was done, how long it took.", no_args_is_help=True)


@app.command("list")
def list_incidents(
    ctx: typer.Context,
    run: Annotated[str | None, typer.Option(help="Of this run only.")] = None,
    node: Annotated[str | None, typer.Option(help="Of this node only.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Incidents, newest first."""
    from orchestrator.cli import tables

    answer = client(ctx).get("/v1/incidents", run=run, node=node)
    show(answer, output, lambda a: tables.incidents(a["incidents"], a["now_s"]))


@app.command("show")
def show_incident(
    ctx: typer.Context,
    incident: Annotated[str, typer.Argument(metavar="INCIDENT", help="An incident's id.", show_default=False)],
    output: Output = Format.TABLE,
) -> None:
    """One incident, phase by phase."""
    from orchestrator.cli import tables

    show(client(ctx).get(f"/v1/incidents/{quoted(incident)}"), output, tables.incident)
