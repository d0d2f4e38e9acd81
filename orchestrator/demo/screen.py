"""What `holdfast demo` shows: one line of progress that stays in place, sentences above it, tables at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PHASES = {  # heads of columns: the table must fit 120 characters
    "detect": "detect", "decide": "decide", "isolate": "isolate", "place": "place", "form": "form",
    "restore": "restore", "first_step": "1st step",
}  # fmt: skip
LINE_EVERY_STEPS = 25  # where there is no terminal to redraw


class Screen:
    def __init__(self) -> None:
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        self._progress: Progress | None = None
        self._last_line = 0

    def say(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style)

    def headline(self, text: str) -> None:
        self.console.rule(f"[bold]{text}", align="left")

    @contextmanager
    def training(self, name: str, steps: int) -> Iterator[Any]:
        """Yields `show(run)`, to be called with the API's view of the run now and then."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(name, total=steps, what="")
            self._last_line = 0

            def show(run: dict[str, Any]) -> None:
                live = run.get("live") or {}
                step = int(live.get("step") or run["step"])
                state = run["phase"] if not run["stage"] else f"{run['phase']}: {run['stage']}"
                loss = f"loss {live['loss']:.3f}" if live.get("loss") else ""
                what = f"step {step}/{steps} {loss} {state}"
                progress.update(task, completed=step, what=what)
                if not self.console.is_terminal and step - self._last_line >= LINE_EVERY_STEPS:
                    self._last_line = step
                    self.say(f"  {name}: {what}")

            yield show

    def incidents(self, incidents: list[dict[str, Any]]) -> None:
        self.say("Incidents, seconds by phase; recovery: from the fault to the next step of all ranks; lost: in steps")
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("incident", "cause", "node", "rung"):
            table.add_column(column, no_wrap=True)
        for column in (*PHASES.values(), "recovery", "lost"):
            table.add_column(column, justify="right", no_wrap=True)
        for incident in incidents:
            phases = [f"{incident['phases_s'].get(phase, 0.0):.3f}" for phase in PHASES]
            table.add_row(
                incident["id"], incident["cause"], incident["node"], incident["rung"].replace("_", " "), *phases,
                f"[bold]{incident['recovery_s']:.3f}", str(incident["steps_lost"]),
            )  # fmt: skip
        self.console.print(table)
        for incident in incidents:
            self.say(f"  {incident['id']}: {incident['reason']}")

    def summary(self, summary: dict[str, Any]) -> None:
        table = Table(box=SIMPLE_HEAD, show_header=False, padding=(0, 1, 0, 0))
        table.add_column()
        table.add_column()
        recovery = summary["recovery_s"]
        rows = {
            "steps": f"{summary['steps']} on {summary['nodes']} nodes, a world of {summary['world_size']}",
            "loss": f"{summary['first_loss']:.3f} -> {summary['last_loss']:.3f} "
            f"(unigram entropy of the text {summary['unigram_entropy']:.3f})",
            "wall": f"{summary['wall_s']:.1f} s",
            "uptime": f"{summary['uptime_ratio']:.1%} of the wall time since submission",
            "time to recover": f"median {recovery['p50']:.3f} s, mean {recovery['mean']:.3f} s, p95 {recovery['p95']:.3f} s",
            "ledger": ", ".join(f"{cause} {s:.2f} s" for cause, s in summary["ledger"].items() if s),
            "bit exact": "yes: losses, norms and final state equal the undisturbed run's, bit for bit"
            if summary["bit_exact"]
            else "NO",
        }
        for name, value in rows.items():
            table.add_row(name, value)
        self.console.print(table)
