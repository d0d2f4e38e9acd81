"""Both ends of a link prove that they hold the cluster's key before either obeys a byte of the other.

    daemon      -> supervisor   magic, nonce_d
    supervisor  -> daemon       nonce_s, HMAC(key, "supervisor" | nonce_d | nonce_s)
    daemon      -> supervisor   HMAC(key, "daemon" | nonce_d | nonce_s)

HMAC-SHA256; nonces of 32 fresh random bytes from both, so that no recorded proof serves again; the role is part of
what is proved, so that a proof sent back to its author fails. All sizes are fixed: a stranger makes nobody allocate.
Frames after the handshake are neither encrypted nor signed: a network on which others rewrite packets needs a tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import stat
from pathlib import Path

MAGIC = b"HFLINK01"
NONCE_BYTES = 32
MAC_BYTES = 32
KEY_BYTES = 32
HANDSHAKE_TIMEOUT_S = 3.0


class AuthError(Exception):
    """The peer did not prove the cluster's key."""


class KeyFileError(Exception):
    """The key file can't be used; the message says why and what to do."""


def create_key(path: Path) -> bytes:
    """Makes the cluster's key (32 random bytes, as hex, mode 0600) unless it exists, and returns it.

    KeyFileError when a file is there that `read_key` refuses.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: of two that create it at once, both end up with the first one's key.
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        os.unlink(aside)
    return read_key(path)


def read_key(path: Path) -> bytes:
    """The key in this file. KeyFileError when it is missing, not ours, readable by others, or no key."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileError(f"cannot read the cluster key {path}: {error.strerror}") from None
    try:
        # On the descriptor, not the path: what was checked is what is read.
        _refuse_unsafe(path, os.fstat(descriptor))
        text = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        raise KeyFileError(f"the cluster key {path} is not written as hexadecimal digits") from None
    if len(key) < KEY_BYTES:
        raise KeyFileError(f"the cluster key {path} has {len(key)} bytes; it needs {KEY_BYTES}")
    return key


def _refuse_unsafe(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise KeyFileError(f"the cluster key {path} is not a regular file")
    if info.st_uid != os.geteuid():
        raise KeyFileError(f"the cluster key {path} belongs to user {info.st_uid}, not to {os.geteuid()}")
    if info.st_mode & 0o077:
        raise KeyFileError(
            f"the cluster key {path} has mode {info.st_mode & 0o777:04o}, so others can read it: "
            "make a new key, since this one may be known, or run chmod 600 if you are sure that it is not"
        )


def _proof(key: bytes, role: bytes, nonce_d: bytes, nonce_s: bytes) -> bytes:
    # The nonces have a fixed size, so the parts can't be shifted against each other.
    return hmac.digest(key, MAGIC + role + b"|" + nonce_d + nonce_s, "sha256")


async def admit_supervisor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes) -> None:
    """Daemon's end. AuthError, EOFError, OSError or TimeoutError when the peer did not prove the key."""
    async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
        nonce_d = secrets.token_bytes(NONCE_BYTES)
        writer.write(MAGIC + nonce_d)
        answer = await reader.readexactly(NONCE_BYTES + MAC_BYTES)
        nonce_s, proof = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
        if not hmac.compare_digest(proof, _proof(key, b"supervisor", nonce_d, nonce_s)):
            raise AuthError("the supervisor's proof is wrong: it has another cluster key")
        writer.write(_proof(key, b"daemon", nonce_d, nonce_s))
        await writer.drain()


async def prove_to_daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes) -> None:
    """Supervisor's end. AuthError, OSError or TimeoutError when the peer did not prove the key."""
    async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
        greeting = await reader.readexactly(len(MAGIC) + NONCE_BYTES)
        if not greeting.startswith(MAGIC):
            raise AuthError("the peer is no Holdfast daemon of this version")
        nonce_d, nonce_s = greeting[len(MAGIC) :], secrets.token_bytes(NONCE_BYTES)
        writer.write(nonce_s + _proof(key, b"supervisor", nonce_d, nonce_s))
        try:
            proof = await reader.readexactly(MAC_BYTES)
        except EOFError:
            raise AuthError("the daemon refused this supervisor's proof: it has another cluster key") from None
        if not hmac.compare_digest(proof, _proof(key, b"daemon", nonce_d, nonce_s)):
            raise AuthError("the daemon's proof is wrong: it has another cluster key")
