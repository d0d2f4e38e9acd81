"""holdfast validate, submit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.client import Client, quoted
from orchestrator.cli.errors import CliError, Exit
from orchestrator.cli.output import Format, Output, client, say, show

WAIT_POLL_S = 0.5
SpecFile = Annotated[
    Path, typer.Argument(metavar="SPEC", help="A run spec in YAML; see examples/.", show_default=False)
]


def register(app: typer.Typer) -> None:
    app.command()(validate)
    app.command()(submit)


def validate(file: SpecFile, output: Output = Format.TABLE) -> None:
    """Check a run spec without a daemon, the trainer's section included."""
    from orchestrator.spec.errors import SpecErrors
    from orchestrator.spec.load import load_spec
    from orchestrator.spec.shapes import notes

    try:
        spec = load_spec(file)
    except SpecErrors as errors:
        if output is Format.TABLE:
            raise CliError(errors.render(), code=Exit.INVALID_SPEC) from None
        show({"valid": False, "errors": [e.as_dict() for e in errors.errors]}, output, str)
        raise typer.Exit(Exit.INVALID_SPEC) from None
    shape = (
        f"{spec.nodes} nodes x {spec.ranks_per_node} ranks = {spec.replicas} replicas x {spec.shards} shards, "
        f"{'the built-in trainer' if spec.work.trainer is not None else 'a command'}"
    )
    answer = {"valid": True, "spec": spec.public(), "notes": notes(spec)}
    show(
        answer, output, lambda a: "\n".join([f"{file} is a valid spec: {shape}.", *(f"note: {n}" for n in a["notes"])])
    )


def submit(
    ctx: typer.Context,
    file: SpecFile,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run; the exit code is 0 when it completes.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Queue a run. It starts when there are enough healthy nodes."""
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CliError(f"{file} can't be read: {why}.", code=Exit.INVALID_SPEC) from None
    daemon = client(ctx)
    answer = daemon.post("/v1/runs", {"spec": text, "file": str(file.absolute())})
    show(answer, output, _submitted)
    if wait:
        _follow(daemon, answer["run"])


def _submitted(answer: dict[str, Any]) -> str:
    lines = [f"{answer['run']}: {answer['reason']}", *(f"warning: {w}" for w in answer["warnings"])]
    return "\n".join([*lines, f"Follow it with `holdfast watch {answer['run']}`."])


def _follow(daemon: Client, name: str) -> None:
    """Say each change of the run's state until it has ended. Exit code 1 unless it completed."""
    said = ""
    while True:
        run = daemon.get(f"/v1/runs/{quoted(name)}", decisions=0)
        sentence = f"{run['phase']}: {run['reason']}"
        if sentence != said:
            say(said := sentence)
        if run["finished_at_s"]:
            raise typer.Exit(Exit.OK if run["phase"] == "completed" else Exit.ERROR)
        time.sleep(WAIT_POLL_S)
