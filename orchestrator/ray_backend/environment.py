"""Ray's settings for the processes that Holdfast starts, all in one place, and why each is so."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

NAMESPACE = "holdfast"
NODE_LABEL = "holdfast-node"


def token_file(state_dir: Path) -> Path:
    return state_dir / "ray-token"


def create_token(state_dir: Path) -> Path:
    """Ray's cluster token, in a file of mode 0600. An existing one is kept."""
    path = token_file(state_dir)
    if not path.exists():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as f:
            f.write(secrets.token_hex(32))
    return path


def is_loopback(address: str) -> bool:
    return address.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]", "::1")


def joined(address: str) -> dict[str, str]:
    """Environment of the bridge that joins a cluster of somebody else's; its token is Ray's own business (RAY_AUTH_*)."""
    # Ray rewrites 127.0.0.1 in an address to the machine's outer one, where a cluster on loopback does not listen.
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if is_loopback(address) else {}


def embedded(state_dir: Path) -> dict[str, str]:
    """Environment of an embedded cluster's raylets and of the bridge that joins it.

    Every simulated node shares the machine, so the settings also keep the idle cost of a raylet low.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file(state_dir)),
        # Else Ray rewrites 127.0.0.1 in an address to the machine's outer one, where nothing listens.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A dead raylet is seen first by its supervisor, by pidfd; Ray's own word within about three seconds is enough.
        # Tighter values call a node dead that is only slow.
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "5",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        # An agent without GPUs in Ray's books must not hide the machine's GPUs from its supervisor.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # A loaded test machine may hold much memory that is not ours; Ray is not the judge of it.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_DEDUP_LOGS": "0",
    }
