"""`make verify-resume`: is a run that is killed again and again the run that it would have been? To out/verify/resume.json.

Trains a small model on 2 x 2 CPU ranks undisturbed, then again while it is killed at seeded steps, at points of a step and
inside saves in turn. Every rank dies each time, so all state comes from a checkpoint. Then it goes on over other meshes.

{"kills", "kills_inside_save": how often, "killed_at": [step, point] of each, "resumed_from": steps,
 "outliers": steps skipped as outliers, "bit_exact": losses, norms and outcomes of all lives and the final state are those
 of the undisturbed run, bit for bit, "reshard": {from -> to: largest absolute difference of a loss},
 "reshard_tolerance", "same_order": all meshes trained the same sequences in the same order, "holds", ...}
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "trainer"))

from striking_standby import FILE_OPERATIONS
from trainer_harness import Standby, Supervisor, digests, losses

from trainer.checkpoint.manifest import read_manifest
from trainer.data.order import epoch_order
from trainer.outliers import MIN_STEPS

Mesh = tuple[int, int]  # replicas, shards
POINTS = ("forward", "backward", "before_vote", "in_vote", "after_vote", "optimizer", "after_step")
RESHARD_TOLERANCE = 1e-5  # of losses near 6: twenty units in the last place, for sums in another order over a few steps
SEQUENCE, BATCH, INSTANCES, DATA_SEED = 32, 8, 1200, 7


@dataclass
class Plan:
    """What to do: steps in all, a save each `interval`, an outlier at `outlier`, and so many deaths.

    `meshes` are where it goes on, one after another.
    """

    kills: int
    seed: int
    steps: int = MIN_STEPS + 24
    interval: int = 5
    outlier: int = MIN_STEPS + 12
    mesh: Mesh = (2, 2)
    meshes: tuple[Mesh, ...] = ((4, 1), (1, 2), (1, 1))


@dataclass
class Found:
    """What the killed run went through."""

    killed_at: list[tuple[int, str]] = field(default_factory=list)
    resumed_from: list[int] = field(default_factory=list)
    inside_save: int = 0


class Workshop:
    """Makes data, configurations and runs in one folder."""

    def __init__(self, folder: Path, standby: Standby, plan: Plan) -> None:
        self._folder, self._standby, self._plan = folder, standby, plan
        write_tokens(folder / "tokens.npy", plan.outlier)

    def run(self, name: str, mesh: Mesh) -> Supervisor:
        """A supervisor of a run in the folder `name`, made when it isn't there."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        config = {
            "run_dir": str(folder),
            "steps": self._plan.steps,
            "batch_tokens": BATCH * SEQUENCE,
            "device": "cpu",
            "seed": 3,
            "model": {"name": "olmo_hybrid_tiny"},
            "data": {"paths": [str(self._folder / "tokens.npy")], "sequence_length": SEQUENCE, "seed": DATA_SEED},
            # A rate so low that losses and norms stay level: then the planted step, and no other, is an outlier.
            "optimizer": {"lr": 1e-5},
            "checkpoint": {"interval_steps": self._plan.interval},
        }
        path = folder / "trainer.yaml"
        path.write_text(yaml.safe_dump(config))
        supervisor = Supervisor(self._standby, folder, path, *mesh)
        supervisor.environ["HOLDFAST_TEST_INSTANCES"] = str(folder / "instances.jsonl")
        return supervisor


def write_tokens(path: Path, outlier: int) -> None:
    """Noise, but for the instances of one step, each a single token over and over, which makes a steep gradient."""
    tokens = np.random.default_rng(0).integers(0, 256, (INSTANCES, SEQUENCE)).astype(np.uint16)
    tokens[epoch_order(INSTANCES, BATCH, DATA_SEED, 1)[outlier - 1]] = 65
    tokens.tofile(path)


def train(supervisor: Supervisor) -> Path:
    """Without disturbance, from the newest checkpoint if there is one, to the end; its folder."""
    try:
        supervisor.start()
        supervisor.wait_completed()
    finally:
        supervisor.close()
    return supervisor.folder


def train_and_kill(workshop: Workshop, plan: Plan) -> tuple[Path, Found]:
    """As `train`, with deaths on the way: one rank is struck, then all others are killed where they are."""
    rng, found = random.Random(plan.seed), Found()
    supervisor = workshop.run("killed", plan.mesh)
    due = sorted([*rng.sample(range(1, plan.steps), plan.kills - 1), rng.randrange(plan.outlier - 6, plan.outlier)])
    try:
        for index, step in enumerate(due):
            newest = newest_checkpoint(supervisor.folder / "checkpoints")
            found.resumed_from.append(newest)
            draw = strike_in_save if index % 2 else strike_in_step
            rank, strike = draw(rng, max(step, newest + 1), plan, supervisor.folder)
            mark = supervisor.folder / f"struck-{index}"
            supervisor.start({rank: [{**strike, "mark": str(mark)}]})
            supervisor.wait_exit(rank)
            for other in set(range(supervisor.world)) - {rank}:
                supervisor.kill(other)
            if mark.exists():
                found.killed_at.append((strike["step"], f"{strike['point']} {mark.read_text()}".strip()))
                found.inside_save += strike["point"] == "save"
        supervisor.start()
        supervisor.wait_completed()
    finally:
        supervisor.close()
    return supervisor.folder, found


def strike_in_step(rng: random.Random, step: int, plan: Plan, folder: Path) -> tuple[int, dict]:
    """(rank, strike) at a point of this step."""
    return rng.randrange(plan.mesh[0] * plan.mesh[1]), {"point": rng.choice(POINTS), "step": step, "do": "kill"}


def strike_in_save(rng: random.Random, step: int, plan: Plan, folder: Path) -> tuple[int, dict]:
    """(rank, strike) inside the save that is due at this step or next; the ranks of replica 0 are those that save."""
    save = min(-(-step // plan.interval) * plan.interval, plan.steps)
    root = str(folder / "checkpoints")
    again = save < plan.steps  # of the last save each operation may be the only one
    strike = {"operation": rng.choice(FILE_OPERATIONS), "number": rng.randint(1, 1 + again)}
    return rng.randrange(plan.mesh[1]), {"point": "save", "step": save, "root": root, **strike}


def newest_checkpoint(root: Path) -> int:
    """Step of the newest committed checkpoint; 0 when there is none."""
    return max((int(path.parent.name.removeprefix("step-")) for path in root.glob("step-*/manifest.json")), default=0)


def metrics(folder: Path, rank: int) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics" / f"rank-{rank}.jsonl").read_text().splitlines()]


def differences(reference: Path, killed: Path, plan: Plan) -> list[str]:
    """What isn't equal, bit for bit: each line of each life, the final weights and moments, the skip-step statistics."""
    found = []
    world = plan.mesh[0] * plan.mesh[1]
    for rank in range(world):
        expected = {m["step"]: (m["loss"], m["grad_norm"], m["outcome"]) for m in metrics(reference, rank)}
        seen = [(m["step"], (m["loss"], m["grad_norm"], m["outcome"])) for m in metrics(killed, rank)]
        found += [f"rank {rank}, step {step}: {line}" for step, line in seen if expected.get(step) != line]
        found += [f"rank {rank}: step {step} is missing" for step in set(expected) - {step for step, _ in seen}]
    if digests(reference, world) != digests(killed, world):
        found.append("the final weights or moments")
    name = f"step-{plan.steps:08d}"
    ends = [read_manifest(folder / "checkpoints" / name).meta for folder in (reference, killed)]
    if ends[0].statistics != ends[1].statistics:
        found.append("the statistics of the last checkpoint")
    return found


def sequences(folder: Path) -> dict[int, list[str]]:
    """step -> digests of its sequences in the order of the global batch, as far as all ranks have loaded it."""
    rows: dict[int, dict[int, str]] = {}
    for line in map(json.loads, (folder / "instances.jsonl").read_text().splitlines()):
        for index, digest in enumerate(line["instances"]):
            rows.setdefault(line["step"], {})[line["rank"] + index * line["world"]] = digest
    return {step: [row[i] for i in range(BATCH)] for step, row in rows.items() if len(row) == BATCH}


def reshard(workshop: Workshop, reference: Path, plan: Plan) -> tuple[dict[str, float], bool]:
    """Each mesh goes on from a checkpoint of the one before, and is compared with it over the steps that both made."""
    differing: dict[str, float] = {}
    same_order = True
    before, mesh_before = reference, plan.mesh
    order = sequences(reference)
    for number, mesh in enumerate(plan.meshes, 1):
        supervisor = workshop.run(f"mesh-{number}", mesh)
        begin = plan.outlier - 2 * plan.interval + number * plan.interval
        begin -= begin % plan.interval
        name = f"step-{begin:08d}"
        shutil.copytree(before / "checkpoints" / name, supervisor.folder / "checkpoints" / name)
        after = train(supervisor)
        then, now = losses(before, 1)[0], losses(after, 1)[0]
        if set(now) != set(range(begin + 1, plan.steps + 1)):
            raise RuntimeError(f"{mesh} did not go on from step {begin}: {sorted(now)}")
        key = f"{mesh_name(mesh_before)}->{mesh_name(mesh)}"
        differing[key] = max(abs(float.fromhex(now[s][0]) - float.fromhex(then[s][0])) for s in now)
        same_order = same_order and all(sequences(after)[step] == order[step] for step in now)
        before, mesh_before = after, mesh
    return differing, same_order


def mesh_name(mesh: Mesh) -> str:
    return "1" if mesh == (1, 1) else f"{mesh[0]}x{mesh[1]}"


def verify(plan: Plan, folder: Path) -> dict:
    """All of it, in this folder."""
    begin = time.monotonic()
    standby = Standby()
    try:
        workshop = Workshop(folder, standby, plan)
        reference = train(workshop.run("reference", plan.mesh))
        killed, found = train_and_kill(workshop, plan)
        unequal = differences(reference, killed, plan)
        resharded, same_order = reshard(workshop, reference, plan)
    finally:
        standby.close()
    outliers = [m["step"] for m in metrics(reference, 0) if m["outcome"] == "outlier"]
    same_order = same_order and all(sequences(killed)[s] == row for s, row in sequences(reference).items())
    holds = not unequal and same_order and max(resharded.values()) <= RESHARD_TOLERANCE and outliers == [plan.outlier]
    return {
        "kills": len(found.killed_at),
        "kills_inside_save": found.inside_save,
        "killed_at": found.killed_at,
        "resumed_from": found.resumed_from,
        "steps": plan.steps,
        "mesh": mesh_name(plan.mesh),
        "outliers": outliers,
        "bit_exact": not unequal,
        "unequal": unequal[:20],
        "reshard": resharded,
        "reshard_tolerance": RESHARD_TOLERANCE,
        "same_order": same_order,
        "holds": holds,
        "seed": plan.seed,
        "seconds": round(time.monotonic() - begin, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a run again and again; compare it with an undisturbed one.")
    parser.add_argument("--out", type=Path, default=Path("out/verify/resume.json"), metavar="FILE")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as folder:
        found = verify(Plan(arguments.kills, arguments.seed), Path(folder))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return int(not found["holds"])


if __name__ == "__main__":
    sys.exit(main())
