"""URLs of the durable tier, by way of fsspec, which is imported only when one is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.checkpoint.errors import CheckpointError


class StorageError(CheckpointError):
    """A storage can't be used from here, or does not answer."""


def open_url(url: str) -> Path | tuple[Any, str]:
    """(fsspec file system, path in it) of a URL; a plain path for file://, whose saves are then synced and renamed.

    Raises StorageError: no such protocol, or the package that speaks it is missing.
    """
    protocol, _, rest = url.partition("://")
    if protocol in ("file", "local"):
        return Path("/" + rest.lstrip("/"))
    try:
        import fsspec
    except ImportError as error:
        raise StorageError(f"{url} needs the package fsspec: pip install fsspec") from error
    try:
        # No listings from memory: other ranks write there, too.
        filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise StorageError(f"{url} can't be used: {error}") from error
    return filesystem, path
