"""What `holdfast up` decided about a cluster, kept in STATE/settings.json, so that a daemon can be started again alone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from orchestrator.files import write_atomic


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    address: str  # of Ray's head
    simulated: str = ""  # profile of the embedded cluster's nodes; empty: a real cluster
    embedded: bool = False
    listen_host: str = "127.0.0.1"  # where supervisors reach the daemon
    allow_injection: bool = False  # fault tests on real nodes too
    metrics_port: int = 0  # of /metrics and the API over TCP on 127.0.0.1; 0: any free one, kept in STATE/http.json

    def write(self, state_dir: Path) -> None:
        write_atomic(state_dir / "settings.json", msgspec.json.encode(self).decode())

    @classmethod
    def read(cls, state_dir: Path) -> Settings:
        """Raises FileNotFoundError when this state folder was never used by `holdfast up`."""
        return msgspec.json.decode((state_dir / "settings.json").read_bytes(), type=cls)
