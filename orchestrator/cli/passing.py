"""holdfast data, simulate, doctor: other programs of the house, run as processes of their own."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from orchestrator.cli.output import Format, Output, show

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    app.command(context_settings=PASS_ON)(data)
    app.command(context_settings=PASS_ON)(simulate)
    app.command()(doctor)


def data(ctx: typer.Context) -> None:
    """Prepare training data: `holdfast data prepare ...` is `python -m trainer data prepare ...`."""
    raise typer.Exit(_run("trainer", "data", *ctx.args))


def simulate(ctx: typer.Context) -> None:
    """Run the real controller over a simulated cluster; `holdfast simulate --help` lists what it takes."""
    raise typer.Exit(_run("orchestrator.simulator", *ctx.args))


def doctor(
    ctx: typer.Context,
    output: Output = Format.TABLE,
    gpu: Annotated[bool, typer.Option(help="Also run the GPU health checks.")] = True,
) -> None:
    """Is this machine fit: Python, Ray, shared memory, GPUs, daemon."""
    from orchestrator.cli import doctor as the_doctor
    from orchestrator.cli.output import client

    checks = the_doctor.examine(client(ctx), gpu=gpu)
    answer = {"ok": all(c["ok"] for c in checks), "checks": checks}
    show(answer, output, the_doctor.table)
    raise typer.Exit(0 if answer["ok"] else 1)


def _run(module: str, *args: str) -> int:
    """Exit code of `python -m module args`; a death by signal N is 128 + N, as in a shell."""
    sys.stdout.flush()
    code = subprocess.run([sys.executable, "-m", module, *args], check=False).returncode
    return 128 - code if code < 0 else code
