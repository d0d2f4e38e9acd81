"""What the lists and the details look like on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli.humanize import ago, count, duration, percent, plural

COLORS = {
    "running": "green",
    "completed": "green",
    "healthy": "green",
    "recovered": "green",
    "training": "green",
    "recovering": "yellow",
    "suspect": "yellow",
    "probation": "yellow",
    "remediating": "yellow",
    "checking": "cyan",
    "starting": "cyan",
    "pending": "cyan",
    "failed": "red",
    "quarantined": "red",
    "absent": "red",
    "cancelled": "bright_black",
    "retired": "bright_black",
}
PHASE_COLORS = {
    "detect": "red",
    "decide": "magenta",
    "isolate": "yellow",
    "idle": "bright_black",
    "waiting_for_capacity": "bright_black",
    "place": "cyan",
    "form": "blue",
    "restore": "bright_blue",
    "first_step": "green",
}
BAR_CELLS = 60


def grid(*columns: str) -> Table:
    """A table without lines. Columns whose name starts with > are figures, aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return table


def colored(word: str) -> Text:
    return Text(word, COLORS.get(word, ""))


def words(name: str) -> str:
    """ "waiting_for_capacity" -> "waiting for capacity"."""
    return name.replace("_", " ")


def runs(rows: Sequence[dict[str, Any]], now_s: float) -> RenderableType:
    if not rows:
        return "There are no runs. Submit one with `holdfast submit examples/tiny-hybrid.yaml`."
    table = grid("RUN", "STATE", ">STEP", ">LOSS", ">UPTIME", ">NODES", ">RECOVERIES", "SUBMITTED", "WHY")
    for row in rows:
        live = row["live"]
        loss = live.get("loss")
        table.add_row(
            Text(row["run"], "bold"),
            colored(row["phase"]),
            count(max(row["step"], live.get("step", 0))),
            f"{loss:.4f}" if loss and not row["finished_at_s"] else "-",
            percent(row["ledger"]["uptime_ratio"]),
            str(row["plan"]["nodes"]),
            str(row["recoveries"]),
            ago(row["submitted_at_s"], now_s),
            Text(row["reason"]),
        )
    return table


def nodes(rows: Sequence[dict[str, Any]], now_s: float) -> RenderableType:
    if not rows:
        return "There are no nodes yet: none has called the daemon."
    table = grid("NODE", "STATE", "ROLE", ">GPUS", "SINCE", "WHY")
    for row in rows:
        table.add_row(
            Text(row["node"], "bold"),
            colored(row["health"] if row["present"] else "absent"),
            Text(_role(row)),
            str(row["gpus"]),
            ago(row["since_s"], now_s),
            Text(row["reason"]),
        )
    return table


def _role(row: dict[str, Any]) -> str:
    if row["run"]:
        return f"in {row['run']}"
    return "spare" if row["present"] and row["health"] == "healthy" else "-"


def node(answer: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [nodes([answer], answer["now_s"])]
    if answer["findings"]:
        table = grid("SEVERITY", "CHECK", ">GPU", "ACTION", "FINDING")
        for finding in answer["findings"]:
            gpu = str(finding["gpu"]) if finding.get("gpu", -1) >= 0 else "all"
            cells = (finding["severity"], finding["check"], gpu, words(finding["action"]), finding["sentence"])
            table.add_row(*map(Text, cells))
        parts += ["", table]
    if answer["seconds"]:
        spent = ", ".join(f"{words(name)} {duration(seconds)}" for name, seconds in answer["seconds"].items())
        parts += ["", Text(f"Time so far: {spent}.")]
    return Group(*parts)


def incidents(rows: Sequence[dict[str, Any]], now_s: float) -> RenderableType:
    if not rows:
        return "There were no incidents."
    table = grid("INCIDENT", "WHEN", "RUN", "CAUSE", "WHERE", "OUTCOME", ">RECOVERY", ">STEPS LOST", "RUNG")
    for row in rows:
        unknown = row["restored_step"] is None  # until the state is back, steps lost and rung are guesses
        table.add_row(
            Text(row["id"], "bold"),
            ago(row["fault_at_s"], now_s),
            Text(row["run"]),
            Text(words(row["cause"])),
            Text(where(row)),
            colored(row["outcome"] or "recovering"),
            duration(row["elapsed_s"]),
            "-" if unknown else str(row["steps_lost"]),
            "-" if unknown else words(row["rung"]),
        )
    return table


def where(incident: dict[str, Any]) -> str:
    rank = f"rank {incident['rank']}" if incident["rank"] >= 0 else ""
    return ", ".join(part for part in (incident["node"], rank) if part) or "-"


def incident(answer: dict[str, Any]) -> RenderableType:
    """The story of an incident: what, where, why, and a bar of its phases."""
    verb = {"recovered": "recovered in", "failed": "failed after", "cancelled": "cancelled after"}.get(
        answer["outcome"], "recovering for"
    )
    head = Text.assemble(
        (answer["id"], "bold"),
        "  ",
        (words(answer["cause"]), "bold red"),
        f" on {where(answer)}, run {answer['run']}",
    )
    lines: list[RenderableType] = [head, Text(answer["reason"])]
    if answer["also"]:
        lines.append(Text(f"Meanwhile also: {', '.join(map(words, answer['also']))}."))
    lines += [
        "",
        Text(f"{verb} {duration(answer['elapsed_s'])}, {ago(answer['fault_at_s'], answer['now_s'])}; {_steps(answer)}"),
    ]
    return Group(*lines, "", phase_bar(answer["phases_s"]), "", phase_table(answer["phases_s"]))


def _steps(answer: dict[str, Any]) -> str:
    if answer["restored_step"] is None:
        return f"{plural(answer['step_before'], 'step')} were done before, the state is not back yet."
    lost = plural(answer["steps_lost"], "step") if answer["steps_lost"] else "no step"
    return f"{lost} lost: {count(answer['step_before'])} done before, went on from {count(answer['restored_step'])}."


def phase_bar(phases_s: dict[str, float]) -> Text:
    """Widths in proportion to seconds, at least one cell for each phase that took any time."""
    bar = Text()
    for phase, cells in zip(phases_s, shares(list(phases_s.values()), BAR_CELLS), strict=True):
        bar.append("█" * cells, PHASE_COLORS.get(phase, "white"))
    return bar


def shares(seconds: Sequence[float], cells: int) -> list[int]:
    """Whole cells by largest remainder; they sum to `cells` when any second is positive and all that are fit."""
    live = [i for i, s in enumerate(seconds) if s > 0]
    out = [0] * len(seconds)
    total = sum(seconds[i] for i in live)
    exact = {i: seconds[i] / total * (cells - len(live)) for i in live}
    for i in live:
        out[i] = 1 + int(exact[i])
    for i in sorted(live, key=lambda i: int(exact[i]) - exact[i])[: cells - sum(out) if live else 0]:
        out[i] += 1
    return out


def phase_table(phases_s: dict[str, float]) -> RenderableType:
    total = sum(phases_s.values())
    table = grid("PHASE", ">TIME", ">SHARE")
    for phase, seconds in phases_s.items():
        name = Text.assemble(("■ ", PHASE_COLORS.get(phase, "white")), words(phase))
        table.add_row(name, duration(seconds), percent(seconds / total if total else 0))
    return table


def goodput(answer: dict[str, Any]) -> RenderableType:
    """The ledger: every second under one cause, largest first."""
    total = answer["wall_s"]
    table = grid("CAUSE", ">TIME", ">SHARE", "")
    for cause, seconds in sorted(answer["accounts_s"].items(), key=lambda item: -item[1]):
        if not seconds:
            continue
        ratio = seconds / total if total else 0.0
        bar = Text("█" * round(ratio * 30), COLORS.get(cause, "yellow"))
        table.add_row(words(cause), duration(seconds), percent(ratio), bar)
    table.add_row(Text("total", "bold"), duration(total), "", "")
    head = f"{percent(answer['uptime_ratio'])} of {duration(total)} went into steps trained for the first time"
    return Group(Text(head, "bold"), "", table)


def faults(answer: dict[str, Any]) -> RenderableType:
    kinds = grid("FAULT", "WHAT HAPPENS", "DETAILS")
    for kind in answer["kinds"]:
        details = ", ".join([*kind["needs"], *(f"[{name}]" for name in kind["takes"])])
        kinds.add_row(Text("--" + kind["fault"].replace("_", "-"), "bold"), kind["what"], Text(details))
    if not answer["injected"]:
        return kinds
    table = grid("WHEN", "NODE", "FAULT", "BY", "DECISION")
    for row in answer["injected"]:
        cells = (ago(row["at_s"], answer["now_s"]), row["node"], row["fault"], row["who"], row["reason"])
        table.add_row(*map(Text, cells))
    return Group(kinds, "", table)


def decisions(rows: Sequence[dict[str, Any]], now_s: float) -> RenderableType:
    table = grid("WHEN", "EVENT", "DECISION AND WHY")
    for row in rows:
        why = row["reason"] or (f"not decided: {row['error']}" if row["error"] else "")
        table.add_row(ago(row["at_s"], now_s), Text(words(row["kind"])), Text(why))
    return table
