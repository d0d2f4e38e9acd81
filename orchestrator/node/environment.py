"""The environment of a trainer: torchrun's variables and the worker protocol's."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path

from orchestrator.recovery.commands import JoinGang


def trainer_environment(
    base: Mapping[str, str], extra: Mapping[str, str], command: JoinGang, rank: int, *, socket: Path | None
) -> dict[str, str]:
    """`base`, then the workload's own, then what the gang decides. `socket` is None for one without the protocol."""
    ranks = sorted(command.ranks)
    gang = {
        "RANK": rank,
        "LOCAL_RANK": ranks.index(rank),
        "WORLD_SIZE": command.world_size,
        "LOCAL_WORLD_SIZE": len(ranks),
        "GROUP_RANK": ranks[0] // len(ranks),
        "MASTER_ADDR": command.store_host,
        "MASTER_PORT": command.store_port,
        "HOLDFAST_RUN": command.run,
        "HOLDFAST_ATTEMPT": command.attempt,
        "HOLDFAST_NODE": command.node,
        "TORCHELASTIC_RUN_ID": command.run,
        "TORCHELASTIC_RESTART_COUNT": command.attempt - 1,
        # The store is a process of its own, so rank 0 connects to it like the others instead of listening.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    env = {**_defaults(command), **base, **extra, **{name: str(value) for name, value in gang.items()}}
    env.pop("HOLDFAST_WORKER_SOCKET", None)
    return env if socket is None else {**env, "HOLDFAST_WORKER_SOCKET": str(socket)}


def _defaults(command: JoinGang) -> dict[str, str]:
    # As torchrun: several processes that each take all cores are slower than one thread each.
    defaults = {"OMP_NUM_THREADS": "1"} if len(command.ranks) > 1 else {}
    return {**defaults, "GLOO_SOCKET_IFNAME": "lo"} if _is_loopback(command.store_host) else defaults


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
