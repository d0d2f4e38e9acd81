"""/v1/incidents and /v1/faults: what went wrong, and what is made to go wrong."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.api.answers import answer, node_of, read_body, run_of, service_of
from orchestrator.api.entries import LOOK_BACK, page
from orchestrator.api.errors import ApiError, NotFoundError, RefusedError
from orchestrator.api.faults import KINDS, checked_details
from orchestrator.api.present import all_incidents, incident_view, now_s
from orchestrator.recovery.placement import node_of as node_of_rank


class Injection(msgspec.Struct, forbid_unknown_fields=True):
    """Either `node`, or `run` and `rank`: then the node that holds this rank."""

    fault: str
    node: str = ""
    run: str = ""
    rank: int = -1
    details: dict[str, Any] = {}
    who: str = "operator"


async def list_incidents(request: Request) -> Response:
    """Query: run, node."""
    service = service_of(request)
    run, node = request.query_params.get("run"), request.query_params.get("node")
    if run is not None:
        run_of(request, run)
    found = [i for i in all_incidents(service.state()) if run in (None, i.run) and node in (None, i.node)]
    now_ns = service.now_ns()
    return answer({"incidents": [incident_view(i, now_ns) for i in found], "now_s": now_s(service)})


async def show_incident(request: Request) -> Response:
    service = service_of(request)
    name = request.path_params["incident"]
    for incident in all_incidents(service.state()):
        if incident.id == name:
            return answer({**incident_view(incident, service.now_ns()), "now_s": now_s(service)})
    raise NotFoundError(f"There is no incident '{name}'.", "`holdfast incident list` shows them")


async def list_faults(request: Request) -> Response:
    """{"kinds": what can be injected, "injected": fault tests among the newest journal entries}."""
    service = service_of(request)
    entries, _ = await page(service, max(0, service.last_seq() - LOOK_BACK), LOOK_BACK)
    injected = [
        {
            "at_s": e["at_s"],
            **{key: e["event"].get(key, "") for key in ("node", "fault", "who")},
            "reason": e["reason"],
        }
        for e in entries
        if e["kind"] == "fault_injected"
    ]
    body = {"kinds": msgspec.to_builtins(list(KINDS.values())), "injected": injected[::-1], "now_s": now_s(service)}
    return answer(body)


async def inject(request: Request) -> Response:
    body = await read_body(request, Injection)
    details = dict(body.details)
    if body.run:
        node = _node_of_rank(request, body, details)
    elif body.node:
        node = node_of(request, body.node).node
    else:
        raise ApiError("A fault needs a 'node', or a 'run' and a 'rank'.")
    reason = await service_of(request).inject(node, body.fault, checked_details(body.fault, details), body.who)
    return answer({"node": node, "fault": body.fault, "reason": reason}, status=202)


def _node_of_rank(request: Request, body: Injection, details: dict[str, Any]) -> str:
    """The node that holds the rank; for faults of a worker, run and rank go into the details."""
    run = run_of(request, body.run)
    rank = max(0, body.rank)
    if rank >= run.plan.world_size:
        raise NotFoundError(f"The run '{run.run}' has no rank {rank}.", f"its ranks are 0 to {run.plan.world_size - 1}")
    node = node_of_rank(run, rank)
    if not node:
        raise RefusedError(f"Rank {rank} of '{run.run}' is on no node now.", run.reason)
    if body.node and body.node != node:
        raise RefusedError(f"Rank {rank} of '{run.run}' is on {node}, not on {body.node}.")
    if body.fault in KINDS and "rank" in KINDS[body.fault].takes:
        details |= {"run": run.run, "rank": rank}
    return node


ROUTES = [
    Route("/v1/incidents", list_incidents),
    Route("/v1/incidents/{incident}", show_incident),
    Route("/v1/faults", list_faults),
    Route("/v1/faults", inject, methods=["POST"]),
]
