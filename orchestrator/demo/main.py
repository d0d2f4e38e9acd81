"""`holdfast demo`: the main job, end to end, on a real Ray cluster on this machine.

Trains, breaks a GPU, kills a trainer, and shows how the run comes back both times; then trains the same run undisturbed
and compares the two bit for bit. Leaves OUT/summary.json.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator import daemon_control
from orchestrator.cli.client import Client
from orchestrator.cli.errors import CliError
from orchestrator.demo import spec as demo_spec
from orchestrator.demo.comparison import compare, losses
from orchestrator.demo.screen import Screen
from orchestrator.demo.summary import summarize
from orchestrator.files import write_atomic
from orchestrator.node.paths import runtime_dir

POLL_S = 0.1
RUN_DEADLINE_S = 180.0
ENDED = ("completed", "failed", "cancelled")


class DemoError(Exception):
    """What did not go as it should; the message says where to look."""


def main(out_dir: Path, *, steps: int = demo_spec.STEPS, keep: bool = False) -> int:
    """Returns 0 when the run came back from both faults, finished, learned, and equals the undisturbed one; else 1.

    `keep` leaves the cluster up, for a look around with `holdfast --state OUT/state ...`.
    """
    out_dir = out_dir.absolute()
    state_dir = out_dir / "state"
    screen = Screen()
    try:
        daemon_control.down(state_dir, say=lambda _: None)
        shutil.rmtree(state_dir, ignore_errors=True)
        out_dir.mkdir(parents=True, exist_ok=True)
        _demo(screen, out_dir, state_dir, steps)
    except (DemoError, demo_spec.DataError, daemon_control.ControlError, CliError) as error:
        screen.say(f"the demo failed: {error}", style="red")
        screen.say(f"logs: {state_dir}")
        return 1
    finally:
        if not keep:
            daemon_control.down(state_dir, say=lambda _: None)
    return 0


def _demo(screen: Screen, out_dir: Path, state_dir: Path, steps: int) -> None:
    screen.headline("Text")
    data = demo_spec.prepare_data(out_dir / "data")
    entropy = data["unigram_entropy_nats"]
    screen.say(
        f"{data['tokens']:,} tokens of the Python standard library's sources, unigram entropy {entropy:.3f} nats"
    )
    screen.headline("Cluster")
    daemon_control.up(state_dir, nodes=demo_spec.NODES, spares=demo_spec.SPARES, gpus=demo_spec.GPUS, say=screen.say)
    client = Client(runtime_dir(state_dir) / "api.sock")
    screen.headline("The run, and what happens to it")
    names = _submit_both(screen, client, out_dir / "data", steps)
    _disturbed(screen, client, names[0], steps)
    screen.headline("The same run, undisturbed")
    _undisturbed(screen, client, names[1], steps)
    summary = _summary(client, out_dir, names, steps, entropy)
    screen.headline("What it cost")
    screen.incidents(summary["incidents"])
    screen.summary(summary)
    screen.say(f"summary: {out_dir / 'summary.json'}")


def _submit_both(screen: Screen, client: Client, data: Path, steps: int) -> tuple[str, str]:
    """The second queues behind the first and says why."""
    names = []
    for name in ("demo", "demo-undisturbed"):
        body = {"spec": demo_spec.run_spec(name, data, steps), "file": str(data.parent / f"{name}.yaml")}
        answer = client.post("/v1/runs", body)
        screen.say(f"submitted {answer['run']}: {answer['reason']}")
        names.append(answer["run"])
    return names[0], names[1]


def _disturbed(screen: Screen, client: Client, run: str, steps: int) -> None:
    with screen.training(run, steps) as show:
        _await_step(client, run, steps // 4, show)
        node = _placement(client, run)[1]
        screen.say(f"an uncorrectable memory error: XID 48 on GPU 3 of {node}", style="yellow")
        _inject(client, {"fault": "xid", "node": node, "details": {"gpu": 3, "xid": 48}})
        _await_incidents(screen, client, run, 1, show)
        _await_step(client, run, steps * 5 // 8, show)
        screen.say("a trainer process is killed outright: SIGKILL to rank 2", style="yellow")
        _inject(client, {"fault": "kill_worker", "run": run, "rank": 2})
        _await_incidents(screen, client, run, 2, show)
        _await_end(client, run, show)


def _undisturbed(screen: Screen, client: Client, run: str, steps: int) -> None:
    with screen.training(run, steps) as show:
        _await_end(client, run, show)


def _inject(client: Client, body: dict[str, Any]) -> None:
    client.post("/v1/faults", {**body, "who": "demo"})


def _placement(client: Client, run: str) -> list[str]:
    return client.get(f"/v1/runs/{run}")["nodes"]


def _poll(client: Client, run: str, show: Callable[[dict], None], done: Callable[[dict], bool], what: str) -> dict:
    deadline = time.monotonic() + RUN_DEADLINE_S
    while time.monotonic() < deadline:
        view = client.get(f"/v1/runs/{run}")
        show(view)
        if done(view):
            return view
        if view["phase"] in ("failed", "cancelled"):
            raise DemoError(f"the run {run} ended as {view['phase']}: {view['reason']}")
        time.sleep(POLL_S)
    raise DemoError(
        f"the run {run} did not reach {what} within {RUN_DEADLINE_S:.0f} s: {view['phase']}, {view['reason']}"
    )


def _await_step(client: Client, run: str, step: int, show: Callable[[dict], None]) -> None:
    def there(view: dict) -> bool:
        return view["phase"] == "running" and (view["live"] or {}).get("step", 0) >= step

    _poll(client, run, show, there, f"step {step}")


def _await_incidents(screen: Screen, client: Client, run: str, count: int, show: Callable[[dict], None]) -> None:
    def recovered(view: dict) -> bool:
        return len([i for i in view["incidents"] if i["outcome"] == "recovered"]) >= count

    view = _poll(client, run, show, recovered, f"{count} recoveries")
    incident = view["incidents"][count - 1]
    lost = incident["steps_lost"]
    screen.say(
        f"back after {incident['recovery_s']:.2f} s, {incident['rung']}, {lost} step{'' if lost == 1 else 's'} lost: "
        f"{incident['reason']}",
        style="green",
    )


def _await_end(client: Client, run: str, show: Callable[[dict], None]) -> None:
    view = _poll(client, run, show, lambda v: v["phase"] in ENDED, "its end")
    if view["phase"] != "completed":
        raise DemoError(f"the run {run} ended as {view['phase']}: {view['reason']}")


def _summary(client: Client, out_dir: Path, names: tuple[str, str], steps: int, entropy: float) -> dict[str, Any]:
    """Written also when the comparison fails: it says how far the run came."""
    first, second = (out_dir / "state" / "runs" / name for name in names)
    view = client.get(f"/v1/runs/{names[0]}")
    comparison = compare(first, second, view["world_size"], steps)
    summary = summarize(view, demo_spec.SPARES, losses(first), entropy, bit_exact=comparison.bit_exact)
    write_atomic(out_dir / "summary.json", json.dumps(summary, indent=1) + "\n", mode=0o644)
    if comparison.difference:
        raise DemoError(f"the disturbed run and the undisturbed one differ at {comparison.difference}")
    if summary["last_loss"] >= entropy:
        raise DemoError(f"the last loss, {summary['last_loss']:.3f}, is not below the text's unigram entropy")
    return summary
