"""The process groups of one attempt: connected at the join, cut from any thread, torn down without waiting."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from trainer.parallel.layout import Layout
from trainer.parallel.sockets import SocketId, cut, open_sockets

FORM_TIMEOUT_S = 30.0  # of one connection, once all ranks have arrived
COLLECTIVE_TIMEOUT_S = 1800.0  # only a last resort: a hang is seen by the supervisor, which says leave
ABORT_TIMEOUT_S = 4.0  # for the using thread to get out; after that the process can only be ended
_ARRIVAL_POLL_S = 0.005
_CUT_INTERVAL_S = 0.02
_SETTLE_S = 0.2
# A group's destructor joins its threads. Groups of which a thread is stuck in gloo are kept from it, for good.
_unending: list[object] = []


class GangAbortedError(RuntimeError):
    """This rank was told to leave the attempt."""


class Gang:
    """All ranks of one attempt on a mesh (replicate, shard). One thread forms and uses it; any thread may abort it.

    `connect` makes the attempt's store, a client of a server that lives in another process. `give_up` is called when an
    abort can't free the using thread in ABORT_TIMEOUT_S.
    """

    def __init__(
        self,
        attempt: int,
        layout: Layout,
        device: torch.device,
        connect: Callable[[], dist.Store],
        give_up: Callable[[], object] = lambda: None,
    ) -> None:
        self.attempt = attempt
        self.layout = layout
        self.device = device
        self.why = ""
        self._connect = connect
        self._give_up = give_up
        self._before: frozenset[SocketId] | None = None  # sockets held before the gang; None: it isn't being formed yet
        self._gloo: frozenset[SocketId] | None = None  # None until formed
        self._mesh: DeviceMesh | None = None
        self._groups: tuple[dist.ProcessGroup, ...] = ()
        self._pending: dist.Work | None = None  # host work that was not seen to end
        self._lock = threading.Lock()
        self._aborted = threading.Event()
        self._closed = threading.Event()
        self._on_abort: list[Callable[[], object]] = []

    @property
    def mesh(self) -> DeviceMesh:
        """(replicate, shard), or (shard,) for a single replica."""
        if self._mesh is None:
            raise RuntimeError("the gang isn't formed")
        return self._mesh

    @property
    def aborted(self) -> bool:
        return self._aborted.is_set()

    def form(self) -> None:
        """Wait for all ranks, make the groups, connect every pair that will talk, and note the sockets gloo opened.

        Raises GangAbortedError when told to leave meanwhile, RuntimeError when a rank went away.
        """
        self._before = open_sockets()
        store = self._connect()
        others = open_sockets()
        self._await_all(store)
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=store,
            rank=self.layout.rank,
            world_size=self.layout.world,
            timeout=timedelta(seconds=FORM_TIMEOUT_S),
        )
        self._mesh = self._make_mesh()
        self._groups = tuple({id(g): g for g in (dist.group.WORLD, *self._mesh.get_all_groups())}.values())
        self._touch_groups(torch.device("cpu"))
        self._touch_replica_peers()
        for group in self._groups:
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=COLLECTIVE_TIMEOUT_S), group)
        with self._lock:
            self._gloo = open_sockets() - others
        if self.device.type == "cuda":
            self._touch_groups(self.device)
        self.check()

    def check(self) -> None:
        """Raise GangAbortedError once the gang was aborted."""
        if self._aborted.is_set():
            raise GangAbortedError(self.why)

    def on_abort(self, action: Callable[[], object]) -> None:
        """Run `action` when the gang is aborted, in another thread: frees the user from what isn't a collective."""
        with self._lock:
            self._on_abort.append(action)

    def abort(self, why: str) -> None:
        """Free the using thread from any collective, now and until it has closed the gang. Returns at once."""
        with self._lock:
            if self._aborted.is_set() or self._closed.is_set():
                return
            self.why = why
            self._aborted.set()
        self._cut()
        threading.Thread(target=self._keep_cutting, name="abort", daemon=True).start()

    def close(self) -> None:
        """Tear the groups down. Never waits for another rank: what is still connected is cut first."""
        self._cut()
        if not self._settled():
            _unending.append((self._groups, self._pending))
        self._mesh, self._groups = None, ()
        if dist.is_initialized():
            dist.destroy_process_group()
        self._closed.set()

    def all_gather(self, values: torch.Tensor) -> tuple[torch.Tensor, dist.Work]:
        """Begin to gather int64 (k,) of every rank: int64 (world, k) in rank order, and the work to wait for.

        In host memory.
        """
        gathered = torch.empty((self.layout.world, values.numel()), dtype=torch.int64)
        self.check()
        return gathered, dist.all_gather(list(gathered.unbind()), values, async_op=True)

    def wait(self, work: dist.Work) -> None:
        """Wait for a work in host memory, or until the gang is aborted.

        Not for ever in gloo's own wait: a send of which the peer goes away at the wrong moment is never ended there (seen
        on torch 2.13), connection cut or not. Raises GangAbortedError, or RuntimeError when a rank went away.
        """
        self._pending = work
        while not work.is_completed():
            self.check()
            with contextlib.suppress(RuntimeError):  # out of time, or failed: then the last wait says how
                work.wait(timedelta(seconds=_CUT_INTERVAL_S))
        self._pending = None
        work.wait()

    def gather(self, values: list[int]) -> list[list[int]]:
        """The integers of every rank, in rank order."""
        gathered, work = self.all_gather(torch.tensor(values, dtype=torch.int64))
        self.wait(work)
        return gathered.tolist()

    def broadcast(self, values: torch.Tensor, source: int) -> torch.Tensor:
        """`values` of rank `source` on all ranks, in place. Host memory."""
        self.check()
        self.wait(dist.broadcast(values, src=source, async_op=True))
        return values

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Send to another rank, which receives a tensor of equal size and dtype. Waits until it is sent."""
        self.check()
        dist.send(tensor.contiguous(), dst=to)

    def receive(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """Fill a contiguous tensor with what that rank sends."""
        self.check()
        dist.recv(tensor, src=source)
        return tensor

    def _await_all(self, store: dist.Store) -> None:
        arrived = store.add("arrived", 1)
        while arrived < self.layout.world:
            self.check()
            time.sleep(_ARRIVAL_POLL_S)
            arrived = store.add("arrived", 0)

    def _make_mesh(self) -> DeviceMesh:
        if self.layout.replicas == 1:
            return init_device_mesh(self.device.type, (self.layout.shards,), mesh_dim_names=("shard",))
        shape = (self.layout.replicas, self.layout.shards)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))

    def _touch_groups(self, device: torch.device) -> None:
        for group in self._groups:
            self.check()
            work = dist.all_reduce(torch.ones(1, device=device), group=group, async_op=True)
            self.wait(work) if device.type == "cpu" else work.wait()

    def _touch_replica_peers(self) -> None:
        for peer in self.layout.holders(self.layout.shard):
            token = torch.zeros(1)
            if peer < self.layout.rank:
                self.receive(token, peer)
            elif peer > self.layout.rank:
                self.send(token, peer)

    def _cut(self) -> None:
        with self._lock:
            if self._gloo is not None:
                cut(self._gloo)
            elif self._before is not None:
                # Still forming, perhaps waiting for an answer of the store: its connection is cut, too.
                cut(open_sockets() - self._before)

    def _keep_cutting(self) -> None:
        for action in list(self._on_abort):
            action()
        self._abort_nccl()
        give_up_at = time.monotonic() + ABORT_TIMEOUT_S
        while not self._closed.wait(_CUT_INTERVAL_S):
            self._cut()
            if time.monotonic() > give_up_at:
                self._give_up()
                return

    def _settled(self) -> bool:
        """Whether the work that was interrupted has ended, now that its connections are cut."""
        give_up_at = time.monotonic() + _SETTLE_S
        while self._pending is not None and not self._pending.is_completed():
            if time.monotonic() > give_up_at:
                return False
            time.sleep(_ARRIVAL_POLL_S)
        return True

    def _abort_nccl(self) -> None:
        if self.device.type == "cuda":
            for group in self._groups:
                group._get_backend(self.device).abort()
