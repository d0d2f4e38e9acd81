"""The daemon: an ordinary process that decides, journals and commands. It may be killed at any moment.

    main thread          event loop: links to supervisors, the Ray bridge, HTTP, detectors
    controller thread    the one loop of orchestrator/controller.py

Start: lock the folder, replay the journal, take the next epoch through the bridge, listen, tell nodes where. A daemon that
loses its journal's disk stops; trainers go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from orchestrator.api.app import create_app
from orchestrator.api.guard import Guard
from orchestrator.controller import Controller
from orchestrator.daemon.bridge import Bridge
from orchestrator.daemon.cluster import LiveCluster
from orchestrator.daemon.service import DaemonService
from orchestrator.daemon.settings import Settings
from orchestrator.daemon.watcher import Watcher
from orchestrator.files import write_atomic
from orchestrator.journal.clock import JournalClock
from orchestrator.journal.journal import Journal
from orchestrator.link.auth import create_key, read_key
from orchestrator.link.endpoint import Endpoint, EndpointError, read_endpoint, write_endpoint
from orchestrator.link.hub import Hub
from orchestrator.link.messages import Order, Shutdown
from orchestrator.node.paths import runtime_dir
from orchestrator.ray_backend import environment
from orchestrator.recovery.commands import Command, JoinGang, StartStore
from orchestrator.recovery.decide import initial_state
from orchestrator.recovery.events import Event
from orchestrator.recovery.policy import Policy
from orchestrator.recovery.state import Decision, State

log = structlog.get_logger("daemon")

TICK_S = 0.05
SHUTDOWN_S = 5.0


class Daemon:
    def __init__(self, state_dir: Path, settings: Settings, policy: Policy) -> None:
        self.state_dir = state_dir
        self.settings = settings
        self.policy = policy
        self.runtime = runtime_dir(state_dir)
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._down = False
        self._failed = ""

    async def serve(self) -> int:
        """Runs until stopped. Returns the exit code. Raises JournalError, BridgeRefusedError, KeyFileError."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)
        with Journal.open(self.state_dir) as journal:
            await self._serve(journal, self._replayed(journal))
        if self._failed:
            log.error("daemon_failed", why=self._failed)
        return 1 if self._failed else 0

    def _replayed(self, journal: Journal) -> State:
        if not journal.seq:
            return initial_state(self.policy)
        state = journal.replay().require_faithful()
        log.info("journal_replayed", entries=journal.seq, epoch=state.epoch)
        return state

    async def _serve(self, journal: Journal, state: State) -> None:
        clock = JournalClock(journal.last_ns)
        cluster = LiveCluster(clock, self._send)
        reader = journal.reader()
        self.service = DaemonService(self.state_dir, cluster, reader, lambda: self.controller.state, self._shut_down)
        listeners = (cluster.decided, self.service.decided, log_decision)
        self.controller = Controller(cluster, journal, state, self.policy, listeners=listeners)
        self.watcher = Watcher(
            cluster,
            lambda: self.controller.state,
            self._ack,
            self.service.log_chunk,
            self.service.reported,
            self._stand_down,
        )
        self.hub = self._hub(self._last_port())
        self.service.hub, self.service.watcher = self.hub, self.watcher
        self.bridge = self._bridge(state.epoch)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.bridge.stop)
            epoch = await self.bridge.start()
            stack.push_async_callback(self.hub.close)
            await self._listen()
            self.controller.start(epoch)
            self.watcher.expect_known_nodes()
            thread = threading.Thread(target=self._control, name="controller")
            thread.start()
            stack.callback(self._end_controller, cluster, thread)
            await self._run(stack)

    async def _run(self, stack: contextlib.AsyncExitStack) -> None:
        ticking = asyncio.create_task(self._tick())
        stack.callback(ticking.cancel)
        async with contextlib.AsyncExitStack() as servers:
            for server in await self._http():
                task = asyncio.create_task(server.run_until_told())
                servers.push_async_callback(_end_server, server, task)
            log.info("daemon_ready", state_dir=str(self.state_dir), epoch=self.controller.state.epoch)
            await self._stopping.wait()
            if self._down:
                await self._end_nodes()

    # --- links

    async def _listen(self) -> None:
        try:
            host, port = await self.hub.start()
        except OSError:
            # The last daemon's port is somebody else's now. Any other will do: nodes read the endpoint file again.
            self.hub = self.service.hub = self._hub(port=0)
            host, port = await self.hub.start()
        write_endpoint(self.state_dir / "endpoint.json", Endpoint(host=host, port=port))

    def _hub(self, port: int) -> Hub:
        return Hub(host=self.settings.listen_host, port=port, key=self._key(), sink=self.watcher)

    def _last_port(self) -> int:
        try:
            return read_endpoint(self.state_dir / "endpoint.json").port
        except EndpointError:
            return 0

    def _key(self) -> bytes:
        path = self.state_dir / "cluster-key"
        if not path.exists():
            create_key(path)
        return read_key(path)

    def _bridge(self, known_epoch: int) -> Bridge:
        settings = self.settings
        config = {
            "address": settings.address, "known_epoch": known_epoch, "state_dir": str(self.state_dir),
            "key_file": str(self.state_dir / "cluster-key"), "endpoint_file": str(self.state_dir / "endpoint.json"),
            "simulated": settings.simulated, "allow_injection": bool(settings.simulated) or settings.allow_injection,
        }  # fmt: skip
        env = environment.embedded(self.state_dir) if settings.embedded else environment.joined(settings.address)
        return Bridge(config, env, self.state_dir / "bridge.log", self.watcher.ray_nodes)

    def _send(self, commands: tuple[Command, ...]) -> None:
        """From the controller's thread."""
        self._loop.call_soon_threadsafe(self._dispatch, commands)

    def _dispatch(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            needs_workload = isinstance(command, JoinGang | StartStore)
            workload = self.service.workload(command.run) if needs_workload else None  # type: ignore[attr-defined]
            order = Order(epoch=self.controller.state.epoch, command=command, workload=workload)  # type: ignore[arg-type]
            if not self.hub.send(command.node, order):
                # Not lost: what a node should do is said again when it connects.
                log.info("order_not_sent", node=command.node, command=type(command).__name__)

    def _ack(self, node: str, cursor: int) -> None:
        self._loop.call_soon_threadsafe(self.hub.ack, node, cursor)

    # --- threads and tasks

    def _control(self) -> None:
        try:
            self.controller.run()
        except Exception as error:
            log.exception("controller_failed")
            self._failed = str(error)
            self._loop.call_soon_threadsafe(self._stopping.set)

    def _end_controller(self, cluster: LiveCluster, thread: threading.Thread) -> None:
        self.controller.stop()
        cluster.wake()
        thread.join(SHUTDOWN_S)

    async def _tick(self) -> None:
        while True:
            try:
                self.watcher.tick()
            except Exception:
                log.exception("tick_failed")
            await asyncio.sleep(TICK_S)

    # --- HTTP

    async def _http(self) -> list[_Door]:
        """One app, two doors: a Unix socket of mode 0600, and 127.0.0.1 behind a token."""
        app = create_app(self.service)
        token = self._token()
        tcp = socket.create_server(("127.0.0.1", self.settings.metrics_port), reuse_port=False)
        port = tcp.getsockname()[1]
        write_atomic(self.state_dir / "http.json", json.dumps({"host": "127.0.0.1", "port": port}))
        return [_Door(app, _unix_socket(self.runtime / "api.sock")), _Door(Guard(app, token), tcp)]

    def _token(self) -> str:
        path = self.state_dir / "api-token"
        if not path.exists():
            write_atomic(path, secrets.token_urlsafe(32))
        return path.read_text()

    # --- the end

    def _stand_down(self, why: str) -> None:
        """Another daemon took over: end at once, and leave everything to it."""
        self._failed = f"another daemon commands this cluster: {why}"
        self._stopping.set()

    def _shut_down(self) -> None:
        self._down = True
        self._stopping.set()

    async def _end_nodes(self) -> None:
        """Every supervisor ends its trainers and itself. A stop without `down` leaves them all running."""
        for node in list(self.hub.connections):
            self.hub.send(node, Shutdown(why="the cluster goes down"))
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):
                while self.hub.connections:
                    await asyncio.sleep(0.05)


def log_decision(event: Event, decision: Decision) -> None:
    commands = [type(c).__name__ for c in decision.commands]
    log.info("decision", on=type(event).__name__, why=decision.reason, commands=commands)


class _Door(uvicorn.Server):
    """A uvicorn server of ours: the daemon handles signals, and the socket is made beforehand."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        )
        self._listener = listener

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()

    async def run_until_told(self) -> None:
        await self.serve(sockets=[self._listener])


async def _end_server(server: _Door, task: asyncio.Task[None]) -> None:
    server.should_exit = True
    with contextlib.suppress(asyncio.TimeoutError, asyncio.CancelledError):
        await asyncio.wait_for(task, 3.0)


def _unix_socket(path: Path) -> socket.socket:
    """The lock on the state folder says that no other daemon listens there, so an old file is a dead one's."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(64)
    return listener
