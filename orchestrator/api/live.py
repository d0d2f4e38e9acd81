"""What a run's workers said last, folded into one view. Never journaled: it is gone when the daemon is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from orchestrator.link.messages import WorkerStatus


def live_view(workers: Iterable[WorkerStatus]) -> dict[str, Any]:
    """{"step", "skipped", "loss", "grad_norm", "step_ms", "tokens_per_s", "phases", "workers"}; {} without workers.

    `step` is the one that all ranks have completed; loss, norm and skipped steps are of the rank that spoke last;
    `tokens_per_s` is of the whole world: tokens of a step, all steps being alike, over the time of the slowest rank.
    """
    newest = {w.rank: w for w in sorted(workers, key=lambda w: w.attempt)}
    ranks = sorted(newest.values(), key=lambda w: w.rank)
    if not ranks:
        return {}
    phases: dict[str, int] = {}
    for worker in ranks:
        phases[worker.phase] = phases.get(worker.phase, 0) + 1
    last = min((w for w in ranks if w.step_ms), key=lambda w: w.age_ns, default=ranks[0])
    step_ms = max(w.step_ms for w in ranks)
    return {
        "step": min(w.step for w in ranks),
        "skipped": last.skipped,
        "loss": last.loss,
        "grad_norm": last.grad_norm,
        "step_ms": step_ms,
        "tokens_per_s": last.tokens / last.step / step_ms * 1e3 if step_ms and last.step else 0.0,
        "age_s": min(w.age_ns for w in ranks) / 1e9,
        "phases": phases,
        "workers": msgspec.to_builtins(ranks),
    }
