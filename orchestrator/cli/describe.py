"""The page of `holdfast describe RUN`."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.cli.humanize import ago, count, duration, percent, plural
from orchestrator.cli.tables import colored, decisions, goodput, grid, incidents

PLACES_SHOWN = 16


def page(run: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [_head(run), "", _facts(run)]
    if run["nodes"]:
        parts += ["", _title("Placement"), _placement(run)]
    parts += ["", _title("Ledger"), goodput(run["ledger"])]
    if run["incidents"]:
        parts += ["", _title("Incidents"), incidents(run["incidents"][::-1], run["now_s"])]
    if run["decisions"]:
        parts += ["", _title("Last decisions"), decisions(run["decisions"], run["now_s"])]
    return Group(*parts)


def _title(text: str) -> Text:
    return Text(text, "bold underline")


def _head(run: dict[str, Any]) -> RenderableType:
    return Text.assemble((run["run"], "bold"), "  ", colored(run["phase"]), f"  {run['reason']}")


def _facts(run: dict[str, Any]) -> RenderableType:
    live, table = run["live"], grid("", "")
    table.show_header = False
    facts = {
        "submitted": ago(run["submitted_at_s"], run["now_s"]),
        "shape": f"{plural(run['plan']['nodes'], 'node')} x {plural(run['plan']['ranks_per_node'], 'rank')}, "
        f"{plural(run['plan']['replicas'], 'replica')} x {plural(run['plan']['shards'], 'shard')}, priority {run['priority']}",
        "attempt": f"{run['attempt']}" + (f", {run['stage'].replace('_', ' ')}" if run["stage"] else ""),
        "step": count(max(run["step"], live.get("step", 0))),
        "checkpoint": f"step {count(run['checkpoint_step'])}" if run["checkpoint_step"] is not None else "none yet",
        "recoveries": f"{run['recoveries']} of at most {run['plan']['max_recoveries']}",
        "uptime": percent(run["ledger"]["uptime_ratio"]),
    }
    if live.get("step_ms") and not run["finished_at_s"]:
        facts["training"] = (
            f"loss {live['loss']:.4f}, gradient norm {live['grad_norm']:.3f}, "
            f"{duration(live['step_ms'] / 1e3)} a step, {count(live['tokens_per_s'])} tokens/s"
            + (f", {plural(live['skipped'], 'step')} skipped" if live.get("skipped") else "")
        )
    for name, value in facts.items():
        table.add_row(Text(name, "bright_black"), Text(value))
    return table


def _placement(run: dict[str, Any]) -> RenderableType:
    per_node = run["plan"]["ranks_per_node"]
    table = grid("NODE", "RANKS")
    for index, node in enumerate(run["nodes"][:PLACES_SHOWN]):
        first, last = index * per_node, (index + 1) * per_node - 1
        table.add_row(Text(node or "(vacant)"), f"{first}" if first == last else f"{first} to {last}")
    if (more := len(run["nodes"]) - PLACES_SHOWN) > 0:
        table.add_row(f"and {plural(more, 'node')} more", "")
    return table
