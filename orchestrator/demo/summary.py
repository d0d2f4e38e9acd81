"""summary.json of a run, read from the daemon's view of it alone."""

from __future__ import annotations

from typing import Any

INCIDENT_KEYS = ("id", "cause", "node", "rung", "phases_s", "recovery_s", "steps_lost", "reason")


def summarize(
    view: dict[str, Any], spares: int, losses: list[float], unigram_entropy: float, *, bit_exact: bool
) -> dict[str, Any]:
    """`view` is /v1/runs/RUN of an ended run; seconds are floats, losses and entropy nats a token.

    `ledger` holds seconds by cause; they sum to `wall_s`.
    """
    ledger, recovery = view["ledger"], view["recovery"]
    return {
        "run": view["run"],
        "nodes": view["plan"]["nodes"],
        "spares": spares,
        "world_size": view["world_size"],
        "steps": view["step"],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "wall_s": ledger["wall_s"],
        "uptime_ratio": ledger["uptime_ratio"],
        "ledger": ledger["accounts_s"],
        "incidents": [{key: incident[key] for key in INCIDENT_KEYS} for incident in view["incidents"]],
        "recovery_s": {"p50": recovery["p50_s"], "mean": recovery["mean_s"], "p95": recovery["p95_s"]},
        "unigram_entropy": unigram_entropy,
        "bit_exact": bit_exact,
    }
