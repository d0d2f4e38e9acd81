"""Run as a program: kills processes inside a save, looks at what is left, prints one JSON list of observations.

    python crash_harness.py points ROOT     SIGKILL before and after each file operation of a save, one after another
    python crash_harness.py random ROOT     SIGKILL at seeded random moments of endless saving
    python crash_harness.py limit ROOT      saves under a file size limit, which fails in the middle of a write
    python crash_harness.py tiers ROOT      SIGKILL at each file operation of a save to a local tier and its upload

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
from checkpoint_states import PATIENCE_S, leftovers, make_state, newest_proven, save_all, shard_state

from trainer.checkpoint import local as local_module
from trainer.checkpoint import tiers as tiers_module
from trainer.checkpoint.blocks import prove_blocks
from trainer.checkpoint.local import LocalTier
from trainer.checkpoint.manifest import CheckpointMeta
from trainer.checkpoint.outcomes import SaveFailed
from trainer.checkpoint.reader import find
from trainer.checkpoint.writer import AsyncWriter, LocalPlan

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
        for module in (tiers_module, local_module):
            module.write_blocks = self._around(self._torn(module.write_blocks))

    def _around(self, operation):
        def wrapped(*arguments, **options):
            self.point()
            result = operation(*arguments, **options)
            self.point()
            return result

        return wrapped

    def _torn(self, operation):
        def wrapped(path, *arguments):
            digests = operation(path, *arguments)
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            self.point()
            path.write_bytes(whole)
            return digests

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


def save_through_local(root: Path, step: int, attempt: int) -> None:
    """A save by all shards to one node's disk, and its upload; first the uploads that an earlier attempt owes."""
    tier = LocalTier(root / "local", 2, frozenset(range(SHARDS)))
    writers = [AsyncWriter(root / "durable", shard, SHARDS, attempt) for shard in range(SHARDS)]
    for writer in writers:
        writer.use_local(LocalPlan(tier, attempt))
    for save_id, shards in sorted(tier.saves().items()):
        owed = not (root / "durable" / f"step-{save_id.step:08d}").exists() and len(shards.sidecars) == SHARDS
        for shard, writer in enumerate(writers) if owed else ():
            writer.upload(tier.shard(save_id, shard, SHARDS))
    for shard, writer in enumerate(writers):
        writer.save(step, shard_state(make_state(step), SHARDS, shard), CheckpointMeta(step, step, 1))
    assert all(writer.settle(PATIENCE_S) for writer in writers)


def kill_between_tiers(root: Path) -> list[dict]:
    """Each death is of a save of its own step; the next attempt saves a later one and uploads what is owed."""
    save_through_local(root, 1, 1)
    seen = []
    for due in range(1, 1000):

        def dying(due: int = due) -> None:
            DieAt(due).install()
            save_through_local(root, 10 * due, 2 * due)

        survived = forked(dying) == 0
        local = LocalTier(root / "local", 2, frozenset(range(SHARDS)))
        for shards in local.saves().values():
            for sidecar in shards.sidecars:
                prove_blocks(shards.folder, sidecar)
        newest = newest_proven(root / "durable")
        whole = [save_id.step for save_id, shards in local.saves().items() if len(shards.sidecars) == SHARDS]
        save_through_local(root, 10 * due + 5, 2 * due + 1)
        durable = [int(path.name.removeprefix("step-")) for path in find(root / "durable")]
        seen.append(
            {
                "due": due,
                "survived": survived,
                "rejected": [why for _, why in newest.rejected],
                "owed": [step for step in whole if step not in durable],
                "lost": [step for step in [1, *(10 * past + 5 for past in range(1, due + 1))] if step not in durable],
                "leftovers": leftovers(root / "durable"),
            }
        )
        if survived:
            break
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    modes = {
        "points": kill_at_each_point,
        "random": kill_at_random,
        "limit": limit_file_size,
        "tiers": kill_between_tiers,
    }
    print(json.dumps(modes[sys.argv[1]](Path(sys.argv[2]))))
