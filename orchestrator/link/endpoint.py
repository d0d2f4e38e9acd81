"""The file that says where the daemon listens: {"host", "port"}."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


class Endpoint(msgspec.Struct, frozen=True):
    host: str
    port: int


class EndpointError(Exception):
    """The daemon's address can't be read (yet)."""


def write_endpoint(path: Path, endpoint: Endpoint) -> None:
    """Replaces the file in one step, so that no reader sees half of it."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_bytes(msgspec.json.encode(endpoint))
    os.replace(aside, path)


def read_endpoint(path: Path) -> Endpoint:
    """EndpointError when there is none or it is no address."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Endpoint)
    except OSError as error:
        raise EndpointError(f"no daemon address in {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise EndpointError(f"no daemon address in {path}: {error}") from None
