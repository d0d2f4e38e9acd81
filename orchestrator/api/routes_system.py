"""/v1/health, /v1/shutdown, /v1/goodput and /metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.api.answers import answer, run_of, service_of
from orchestrator.api.present import goodput_view, now_s, runs_by_age
from orchestrator.metrics import HoldfastCollector, version_of_holdfast


async def health(request: Request) -> Response:
    service = service_of(request)
    state = service.state()
    body = {
        "status": "ok",
        "version": version_of_holdfast(),
        "epoch": state.epoch,
        "now_s": now_s(service),
        "journal_entries": service.last_seq(),
        "runs": _count(run.phase.value for run in state.runs.values()),
        "nodes": _count(node.health.value for node in state.nodes.values()),
        "queue": list(state.queue),
    }
    return answer(body)


def _count(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


async def goodput(request: Request) -> Response:
    """Query: run; without it, all runs."""
    service = service_of(request)
    name = request.query_params.get("run")
    runs = [run_of(request, name)] if name is not None else runs_by_age(service.state())
    return answer({"runs": [goodput_view(run, service.now_ns()) for run in runs]})


async def shutdown(request: Request) -> Response:
    await service_of(request).shutdown()
    return answer({"reason": "The cluster goes down."})


async def metrics(request: Request) -> Response:
    """Prometheus text, or OpenMetrics where the client asks for it."""
    state = request.app.state
    if not hasattr(state, "registry"):
        state.registry = CollectorRegistry()
        state.registry.register(HoldfastCollector(state.service))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(await asyncio.to_thread(encode, state.registry), headers={"content-type": content_type})


ROUTES = [
    Route("/v1/health", health),
    Route("/v1/goodput", goodput),
    Route("/v1/shutdown", shutdown, methods=["POST"]),
    Route("/metrics", metrics),
]
