"""/v1/runs: submit, list, show, cancel, logs, newest decisions."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.api.answers import answer, integer, read_body, run_of, service_of
from orchestrator.api.entries import newest
from orchestrator.api.errors import ApiError, NotFoundError
from orchestrator.api.present import now_s, run_detail, run_row, runs_by_age


class Submission(msgspec.Struct, forbid_unknown_fields=True):
    """`spec` is the YAML text, `file` the absolute path it stands in: relative paths in it start there."""

    spec: str
    file: str


class Reasoned(msgspec.Struct, forbid_unknown_fields=True):
    who: str = "operator"
    why: str = ""


async def list_runs(request: Request) -> Response:
    service = service_of(request)
    runs = runs_by_age(service.state())
    return answer({"runs": [run_row(run, service) for run in runs], "now_s": now_s(service)})


async def show_run(request: Request) -> Response:
    """Query: decisions (how many of the newest; 20)."""
    service = service_of(request)
    run = run_of(request)
    decisions = await newest(service, run.run, min(integer(request, "decisions", 20), 200))
    return answer({**run_detail(run, service), "spec": service.spec(run.run), "decisions": decisions})


async def submit(request: Request) -> Response:
    body = await read_body(request, Submission)
    if not body.file.startswith("/"):
        raise ApiError(f"'file' must be an absolute path, not '{body.file}'.")
    return answer(msgspec.to_builtins(await service_of(request).submit(body.spec, body.file)), status=201)


async def cancel(request: Request) -> Response:
    run = run_of(request)
    body = await read_body(request, Reasoned)
    return answer({"run": run.run, "reason": await service_of(request).cancel(run.run, body.who, body.why)})


async def log(request: Request) -> Response:
    """Query: rank, attempt (0: newest), offset (bytes)."""
    run = run_of(request)
    rank, attempt = integer(request, "rank", 0), integer(request, "attempt", 0)
    if rank >= run.plan.world_size:
        raise NotFoundError(f"The run '{run.run}' has no rank {rank}.", f"its ranks are 0 to {run.plan.world_size - 1}")
    if attempt > run.attempt:
        raise NotFoundError(f"The run '{run.run}' has no attempt {attempt}.", f"its newest is {run.attempt}")
    piece = await service_of(request).read_log(run.run, rank, attempt, integer(request, "offset", 0))
    return answer({"run": run.run, "rank": rank, **msgspec.to_builtins(piece)})


ROUTES = [
    Route("/v1/runs", list_runs),
    Route("/v1/runs", submit, methods=["POST"]),
    Route("/v1/runs/{run}", show_run),
    Route("/v1/runs/{run}/cancel", cancel, methods=["POST"]),
    Route("/v1/runs/{run}/log", log),
]
