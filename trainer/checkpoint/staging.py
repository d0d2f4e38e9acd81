"""The copy of a shard to host memory, so that training stands still for as little of it as can be.

The copied tensors change only at the next update. On CUDA the copy runs beside the next forward and backward pass, on a
stream and a thread of its own. What has not been copied when the update is due is first cloned on the device, tens of
times faster than over the bus, and copied from there; without room for the clones the update waits for the copy.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from trainer.checkpoint.blocks import check_running
from trainer.checkpoint.errors import SaveRefusedError
from trainer.checkpoint.image import ImagePlan, ShardTensor, as_bytes, plan_image

# Of one copy: 3 ms of a 50 GB/s bus, which is as long as an update waits for the copy that is under way.
_CHUNK_BYTES = 128 << 20
_SPARE_BYTES = 2 << 30  # left free on the device beside the clones, for the step's own needs
_POLL_S = 0.02
_WAIT_S = 0.0005
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context


class Image:
    """A shard's file in memory, while it is copied and after. `memory` may be read once `wait` has returned."""

    def __init__(self, plan: ImagePlan, memory: memoryview, lease: threading.Semaphore) -> None:
        self.plan = plan
        self.memory = memory
        self._lease = lease
        self._copied = threading.Event()
        self._failed: BaseException | None = None
        self._norms: dict[str, float] | None = None

    def wait(self, cancelled: threading.Event) -> None:
        """Until all is copied. Raises SaveRefusedError: cancelled, the copy failed, or a value is not finite."""
        while not self._copied.wait(_POLL_S):
            check_running(cancelled)
        if self._failed is not None:
            raise SaveRefusedError(f"the copy to host memory failed: {self._failed}") from self._failed
        norms = self._host_norms() if self._norms is None else self._norms
        for name, norm in norms.items():
            if not norm < float("inf"):
                raise SaveRefusedError(f"{name} is not finite; such a state is never committed")

    def release(self) -> None:
        """Give the memory back for the next save. Waits for a copy that still writes to it."""
        self._copied.wait()
        self._lease.release()

    def done(self, norms: dict[str, float] | None = None, failed: BaseException | None = None) -> None:
        """Called by the copier, once. norms: the largest magnitude in each tensor; None: not known yet."""
        self._norms, self._failed = norms, failed
        self._copied.set()

    def view(self, name: str) -> Tensor:
        """uint8 (bytes,) of one tensor in the image; not for empty ones."""
        begin, size = self.plan.spans[name]
        return torch.frombuffer(self.memory, dtype=torch.uint8, count=size, offset=begin)

    def _host_norms(self) -> dict[str, float]:
        return {
            name: float(torch.linalg.vector_norm(self.view(name).view(dtype), float("inf")))
            for name, stored in self.plan.tensors.items()
            for dtype in [getattr(torch, stored.dtype)]
            if dtype.is_floating_point and self.plan.spans[name][1]
        }


class Staging:
    """Host memory for one shard, kept over saves and attempts: touching and pinning tens of GB takes seconds."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._pinned = False
        self._lease = threading.Semaphore(1)
        self._copier: _DeviceCopier | None = None
        # CUDA keeps a thread's last error for its next kernel: a failed pinning must not be the training thread's.
        self._reserving = ThreadPoolExecutor(1, "pin")
        self._prepared = False

    def prepare(self, tensors: Mapping[str, ShardTensor]) -> None:
        """Get the memory ready in the background, so that the first save needn't."""
        device = _cuda_of(tensors)
        if not self._prepared and device is not None:
            self._prepared = True
            self._reserving.submit(self._reserve, plan_image(tensors).size, device)

    def begin(self, tensors: Mapping[str, ShardTensor], cancelled: threading.Event) -> Image:
        """Begin to copy the tensors. On CPU all is copied on return; on CUDA, once `finish` has returned, or cloned.

        Waits for the image of the save before to be released. Raises SaveRefusedError once cancelled.
        """
        while not self._lease.acquire(timeout=_POLL_S):
            check_running(cancelled)
        try:
            return self._begin(tensors)
        except BaseException:
            self._lease.release()
            raise

    def _begin(self, tensors: Mapping[str, ShardTensor]) -> Image:
        plan, device = plan_image(tensors), _cuda_of(tensors)
        self._reserving.submit(self._reserve, plan.size, device).result()
        image = Image(plan, memoryview(self._memory)[: plan.size], self._lease)
        image.memory[: len(plan.head)] = plan.head
        sources = {
            name: piece.local.detach().contiguous() for name, piece in tensors.items() if piece.local.numel() > 0
        }
        if device is not None:
            self._copier = _DeviceCopier(image, sources, device)
            return image
        for name, source in sources.items():
            image.view(name).copy_(as_bytes(source))
        image.done()
        return image

    def finish(self) -> float:
        """To be called before the copied tensors change; the milliseconds that it took."""
        if self._copier is None:
            return 0.0
        begin = time.monotonic()
        self._copier.detach()
        self._copier = None
        return (time.monotonic() - begin) * 1e3

    def close(self) -> None:
        """Give the memory up once the last image is released: pinned, it must not be unmapped."""
        with self._lease:
            self._reserving.submit(self._unpin).result()
            self._reserving.shutdown()

    def _reserve(self, size: int, device: torch.device | None) -> None:
        """Memory of this size, pinned for a CUDA device. Raises OSError when there is none."""
        if self._memory is None or len(self._memory) < size:
            self._unpin()
            self._memory = mmap.mmap(-1, max(size, mmap.PAGESIZE))
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        if device is not None and not self._pinned:
            # Pinned as it is: PyTorch's own pinned memory rounds each tensor up to a power of two.
            whole = torch.frombuffer(self._memory, dtype=torch.uint8)
            with torch.cuda.device(device):  # a thread begins on device 0, and would make a context there
                failed = int(torch.cuda.cudart().cudaHostRegister(whole.data_ptr(), whole.nbytes, _PORTABLE))
            self._pinned = not failed
            if failed:
                print(f"checkpoint memory can't be pinned (CUDA error {failed}); copies will be slow", flush=True)

    def _unpin(self) -> None:
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr())
            self._pinned = False


class _DeviceCopier:
    """Copies chunk after chunk in a thread. Until `detach`, from the tensors themselves; after it, from clones."""

    def __init__(self, image: Image, sources: dict[str, Tensor], device: torch.device) -> None:
        self._image = image
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._lock = threading.Lock()  # held over each chunk's copy
        self._turnstile = threading.Lock()  # lets `detach` have the lock next: a Lock is not fair
        self._norms = _largest(sources)
        self._pending = [
            (chunk, into)
            for name, source in sources.items()
            for chunk, into in zip(
                as_bytes(source).split(_CHUNK_BYTES), image.view(name).split(_CHUNK_BYTES), strict=True
            )
        ]
        self._pending.reverse()
        self._stream.wait_stream(torch.cuda.current_stream(device))
        threading.Thread(target=self._run, name="stage", daemon=True).start()

    def detach(self) -> None:
        """Return when the tensors may change: what is left to copy is cloned, or, without room for that, waited for."""
        with self._turnstile, self._lock:
            if not self._pending:
                return
            missing = sum(chunk.nbytes for chunk, _ in self._pending)
            # Not what the allocator has cached: it is in pieces.
            if missing + _SPARE_BYTES < torch.cuda.mem_get_info(self._device)[0] and self._clone():
                return
        while self._pending:
            time.sleep(_WAIT_S)

    def _clone(self) -> bool:
        """False when the device has no room after all; then nothing has changed."""
        try:
            self._pending = [(chunk.clone(), into) for chunk, into in self._pending]
        except torch.OutOfMemoryError:
            return False
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return True

    def _run(self) -> None:
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                while self._copy_next():
                    pass
                norms = {name: float(norm) for name, norm in self._norms.items()}
            self._image.done(norms)
        except Exception as error:  # reported by the save; the update must not wait for ever
            with self._lock:
                self._pending = []
            self._image.done(failed=error)

    def _copy_next(self) -> bool:
        with self._turnstile:
            self._lock.acquire()
        try:
            if not self._pending:
                return False
            chunk, into = self._pending[-1]
            into.copy_(chunk, non_blocking=True)
            self._stream.synchronize()
            self._pending.pop()
            return True
        finally:
            self._lock.release()


def _cuda_of(tensors: Mapping[str, ShardTensor]) -> torch.device | None:
    """The device of the tensors where it is a GPU. A rank's are all on one."""
    return next((piece.local.device for piece in tensors.values() if piece.local.is_cuda), None)


def _largest(sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The largest magnitude of each floating-point tensor, on its device; NaN where there is one."""
    floats = {name: source for name, source in sources.items() if source.is_floating_point()}
    return dict(zip(floats, torch._foreach_norm(list(floats.values()), float("inf")), strict=True)) if floats else {}
