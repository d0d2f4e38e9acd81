"""/v1/nodes: list, show, quarantine, readmit."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.api.answers import answer, node_of, read_body, service_of
from orchestrator.api.present import now_s
from orchestrator.api.routes_runs import Reasoned
from orchestrator.recovery.views import node_view


async def list_nodes(request: Request) -> Response:
    service = service_of(request)
    now_ns = service.now_ns()
    nodes = sorted(service.state().nodes.values(), key=lambda n: n.node)
    return answer({"nodes": [node_view(node, now_ns) for node in nodes], "now_s": now_s(service)})


async def show_node(request: Request) -> Response:
    service = service_of(request)
    return answer({**node_view(node_of(request), service.now_ns()), "now_s": now_s(service)})


async def quarantine(request: Request) -> Response:
    node = node_of(request).node
    body = await read_body(request, Reasoned)
    return answer({"node": node, "reason": await service_of(request).quarantine(node, body.who, body.why)})


async def readmit(request: Request) -> Response:
    node = node_of(request).node
    body = await read_body(request, Reasoned)
    return answer({"node": node, "reason": await service_of(request).readmit(node, body.who, body.why)})


ROUTES = [
    Route("/v1/nodes", list_nodes),
    Route("/v1/nodes/{node}", show_node),
    Route("/v1/nodes/{node}/quarantine", quarantine, methods=["POST"]),
    Route("/v1/nodes/{node}/readmit", readmit, methods=["POST"]),
]
