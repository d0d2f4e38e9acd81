"""Run as a program: kills processes inside a save, looks at what is left, prints one JSON list of observations.

    python crash_harness.py points ROOT     SIGKILL before and after each file operation of a save, one after another
    python crash_harness.py random ROOT     SIGKILL at seeded random moments of endless saving
    python crash_harness.py limit ROOT      saves under a file size limit, which fails in the middle of a write

Forks from one process that has imported torch already, so that a death costs milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from checkpoint_states import leftovers, save_all, shard_state

from trainer.checkpoint import attempt as attempt_module
from trainer.checkpoint.manifest import CheckpointMeta
from trainer.checkpoint.reader import find, newest_proven
from trainer.checkpoint.writer import AsyncWriter, SaveFailed

SHARDS = 2


def forked(work) -> int:
    """Run `work` in a child; its wait status."""
    return os.waitpid(fork(work), 0)[1]


def fork(work) -> int:
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid


def observe(root: Path) -> dict:
    """What a restart finds, and whether the next attempt cleans up and saves on."""
    newest = newest_proven(root)
    seen = {
        "found": [path.name for path in find(root)],
        "newest": newest.path.name if newest.path else None,
        "rejected": [why for _, why in newest.rejected],
    }
    AsyncWriter(root, 0, SHARDS, 99)
    return {**seen, "leftovers": leftovers(root)}


class DieAt:
    """Counts file operations; the process kills itself at the one that is due. Writes die half done."""

    def __init__(self, due: int) -> None:
        self._left = due
        self._lock = threading.Lock()

    def point(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        for name in ("mkdir", "rename", "fsync"):
            setattr(os, name, self._around(getattr(os, name)))
        attempt_module.save_file = self._around(self._torn(attempt_module.save_file))

    def _around(self, operation):
        def wrapped(*arguments, **options):
            self.point()
            result = operation(*arguments, **options)
            self.point()
            return result

        return wrapped

    def _torn(self, operation):
        def wrapped(tensors, path):
            operation(tensors, path)
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            self.point()
            path.write_bytes(whole)

        return wrapped


def kill_at_each_point(root: Path) -> list[dict]:
    save_all(root, 100, shards=SHARDS)
    seen = []
    for due in range(1, 1000):

        def dying(due: int = due) -> None:
            DieAt(due).install()
            save_all(root, 200, shards=SHARDS, attempt=2)

        survived = forked(dying) == 0
        seen.append({"point": due, "survived": survived, **observe(root)})
        if survived:
            break
        for path in find(root)[:-1]:  # the dead save was committed: the next one must do all again
            path.rename(root / f"committed-{due}")
    return seen


def kill_at_random(root: Path) -> list[dict]:
    rng = random.Random(20)
    state = {"model.weight": torch.arange(500_000, dtype=torch.float32)}
    save_all(root, 100, state, shards=SHARDS)
    seen = []
    for attempt in range(1, 16):
        first = 1 + max(int(path.name.removeprefix("step-")) for path in find(root))

        def saving(first: int = first, attempt: int = attempt) -> None:
            writers = [AsyncWriter(root, shard, SHARDS, attempt, keep=2) for shard in range(SHARDS)]
            for step in range(first, first + 100_000):
                for shard, writer in enumerate(writers):
                    writer.save(step, shard_state(state, SHARDS, shard), CheckpointMeta(step, step, 1))

        pid = fork(saving)
        time.sleep(rng.uniform(0.0, 0.12))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        seen.append(observe(root))
    return seen


def limit_file_size(root: Path) -> list[dict]:
    state = {"model.weight": torch.ones(4096)}
    save_all(root, 100, state, shards=SHARDS)
    seen = []
    for limit in (1, 100, 5000, 8191):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        outcomes = save_all(root, 200, state, shards=SHARDS, attempt=2, commit_timeout_s=1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        failed = [outcome.why for outcome in outcomes if isinstance(outcome, SaveFailed)]
        seen.append({"limit": limit, "failed": failed, "outcomes": len(outcomes), **observe(root)})
    save_all(root, 200, state, shards=SHARDS, attempt=3)
    return [*seen, observe(root)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    modes = {"points": kill_at_each_point, "random": kill_at_random, "limit": limit_file_size}
    print(json.dumps(modes[sys.argv[1]](Path(sys.argv[2]))))
