"""The HTTP API: routes under /v1, /metrics, and the console's static files. Every error is {"error", "hint"}."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from orchestrator.api import events, routes_faults, routes_nodes, routes_runs, routes_system
from orchestrator.api.answers import answer
from orchestrator.api.errors import ApiError
from orchestrator.api.guard import CONSOLE_PATH
from orchestrator.api.service import Service
from orchestrator.spec.errors import SpecErrors


def create_app(service: Service, *, console: Path | None = None) -> Starlette:
    """The app of the Unix socket; for TCP wrap it in `guard.Guard`. `console` is a folder of static files."""
    routes: list[BaseRoute] = [
        *routes_system.ROUTES,
        *routes_runs.ROUTES,
        *events.ROUTES,
        *routes_nodes.ROUTES,
        *routes_faults.ROUTES,
    ]
    if console is not None:
        routes.append(Mount(CONSOLE_PATH, StaticFiles(directory=console, html=True)))
        routes.append(Route("/", lambda _: RedirectResponse(CONSOLE_PATH + "/")))
    handlers = {
        ApiError: _api_error,
        SpecErrors: _spec_errors,
        HTTPException: _http_error,
        Exception: _internal_error,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]
    app.state.service = service
    return app


def _api_error(_: Request, error: ApiError) -> Response:
    return answer({"error": error.error, "hint": error.hint}, status=error.status)


def _spec_errors(_: Request, error: SpecErrors) -> Response:
    count = len(error.errors)
    body = {
        "error": f"The spec has {count} mistake{'s' if count > 1 else ''}.",
        "hint": "",
        "errors": [e.as_dict() for e in error.errors],
    }
    return answer(body, status=422)


def _http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        body = {"error": f"There is nothing at {request.url.path}.", "hint": "the API is under /v1"}
    else:
        body = {"error": f"{error.detail}.", "hint": ""}
    return answer(body, status=error.status_code, headers=dict(error.headers or {}))


def _internal_error(_: Request, error: Exception) -> Response:
    body = {"error": f"The daemon failed: {type(error).__name__}: {error}", "hint": "its log has the rest"}
    return answer(body, status=500)
