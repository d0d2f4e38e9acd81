"""What `holdfast doctor` looks at. Each check says what it found, and what to do when it is not well."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from orchestrator.cli.client import Client
from orchestrator.cli.errors import CliError

Check = dict[str, Any]
MIN_SHM_GIB = 2.0
HEALTHCHECK_TIMEOUT_S = 120.0


def examine(daemon: Client, *, gpu: bool) -> list[Check]:
    checks = [_python(), *_packages(), _shared_memory()]
    if gpu:
        checks.append(_gpus())
    return [*checks, _daemon(daemon)]


def table(answer: dict[str, Any]) -> Any:
    from rich.text import Text

    from orchestrator.cli.tables import grid

    out = grid("", "CHECK", "FOUND", "WHAT TO DO")
    for check in answer["checks"]:
        mark = Text("ok", "green") if check["ok"] else Text("no", "red")
        out.add_row(mark, check["check"], Text(check["found"]), Text(check["hint"]))
    return out


def _check(name: str, ok: bool, found: str, hint: str = "") -> Check:
    return {"check": name, "ok": ok, "found": found, "hint": "" if ok else hint}


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return _check("python", sys.version_info >= (3, 11), found, "Python 3.11 or newer is needed")


def _packages() -> list[Check]:
    """Versions of what the daemon can't do without, against what the package asks for."""
    wanted = {r.split(">")[0].split("[")[0].strip(): r for r in requires("holdfast") or () if "extra ==" not in r}
    out = []
    for name in ("ray", "torch", "nvidia-ml-py"):
        need = wanted.get(name, name)
        try:
            out.append(_check(name, True, version(name)))
        except PackageNotFoundError:
            out.append(_check(name, False, "not installed", f"pip install '{need}'"))
    return out


def _shared_memory() -> Check:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError as error:
        return _check("shared memory", False, f"/dev/shm: {error.strerror}", "mount a tmpfs at /dev/shm")
    free, total = usage.free / 2**30, usage.total / 2**30
    hint = "Ray keeps objects there: start the container with a larger --shm-size"
    return _check("shared memory", free >= MIN_SHM_GIB, f"{free:.1f} of {total:.1f} GiB free", hint)


def _gpus() -> Check:
    argv = [sys.executable, "-m", "healthcheck", "--json"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=HEALTHCHECK_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return _check("gpus", False, f"no answer in {HEALTHCHECK_TIMEOUT_S:.0f} s", "look at the driver: nvidia-smi")
    try:
        return _gpu_check(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        return _check("gpus", False, f"the health check failed: {last}", f"run `{' '.join(argv[1:])}`")


def _gpu_check(report: dict[str, Any]) -> Check:
    """Of `python -m healthcheck --json`. A machine without GPUs is fit for simulated nodes."""
    if not report["gpus"] and not report["findings"]:
        return _check("gpus", True, f"none: {report.get('error', 'no GPU was found')}")
    bad = [f for f in report["findings"] if f["severity"] in ("error", "fatal")]
    found = f"{report['gpus']} GPUs, {len(bad)} of {len(report['findings'])} findings are grave"
    return _check("gpus", not bad, found, " ".join(f["sentence"] for f in bad))


def _daemon(daemon: Client) -> Check:
    """A machine without a daemon is fit all the same."""
    try:
        health = daemon.get("/v1/health")
    except CliError as error:
        return _check("daemon", True, "none" if "No daemon" in error.message else error.message)
    return _check("daemon", True, f"epoch {health['epoch']}, {sum(health['nodes'].values())} nodes")
