from __future__ import annotations

import asyncio
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.link import auth
from orchestrator.link.auth import MAC_BYTES, MAGIC, NONCE_BYTES, AuthError, KeyFileError, create_key, read_key

KEY, OTHER = b"k" * 32, b"o" * 32


def pipe() -> tuple[tuple[asyncio.StreamReader, FakeWriter], tuple[asyncio.StreamReader, FakeWriter]]:
    """Two ends of a line in memory."""
    a, b = asyncio.StreamReader(), asyncio.StreamReader()
    return (a, FakeWriter(b)), (b, FakeWriter(a))


class FakeWriter:
    def __init__(self, peer: asyncio.StreamReader) -> None:
        self.peer, self.sent = peer, b""

    def write(self, data: bytes) -> None:
        self.sent += data
        self.peer.feed_data(data)

    async def drain(self) -> None: ...


async def shake(daemon_key: bytes, supervisor_key: bytes) -> tuple[object, object]:
    daemon, supervisor = pipe()

    async def admit() -> None:
        try:
            await auth.admit_supervisor(*daemon, daemon_key)  # type: ignore[arg-type]
        except AuthError:
            daemon[1].peer.feed_eof()
            raise

    ends = await asyncio.gather(
        admit(),
        auth.prove_to_daemon(*supervisor, supervisor_key),  # type: ignore[arg-type]
        return_exceptions=True,
    )
    return ends[0], ends[1]


def test_two_that_hold_the_key_accept_each_other() -> None:
    assert asyncio.run(shake(KEY, KEY)) == (None, None)


def test_with_different_keys_both_refuse() -> None:
    daemon, supervisor = asyncio.run(shake(KEY, OTHER))
    assert isinstance(daemon, AuthError)
    assert isinstance(supervisor, AuthError)
    assert "key" in str(supervisor)


def test_a_daemon_without_the_key_is_not_obeyed() -> None:
    async def scenario() -> None:
        daemon, supervisor = pipe()
        task = asyncio.create_task(auth.prove_to_daemon(*supervisor, KEY))  # type: ignore[arg-type]
        daemon[1].write(MAGIC + b"\0" * NONCE_BYTES)
        await daemon[0].readexactly(NONCE_BYTES + MAC_BYTES)
        daemon[1].write(b"\0" * MAC_BYTES)
        await task

    with pytest.raises(AuthError, match="daemon's proof"):
        asyncio.run(scenario())


def test_a_supervisors_own_proof_sent_back_to_it_fails() -> None:
    async def scenario() -> None:
        daemon, supervisor = pipe()
        task = asyncio.create_task(auth.prove_to_daemon(*supervisor, KEY))  # type: ignore[arg-type]
        daemon[1].write(MAGIC + b"\7" * NONCE_BYTES)
        answer = await daemon[0].readexactly(NONCE_BYTES + MAC_BYTES)
        daemon[1].write(answer[NONCE_BYTES:])
        await task

    with pytest.raises(AuthError, match="daemon's proof"):
        asyncio.run(scenario())


def test_a_daemons_challenge_reflected_through_a_second_connection_fails() -> None:
    """The attacker answers connection 1 with what the daemon itself says on connection 2."""

    async def scenario() -> None:
        daemon1, attacker1 = pipe()
        daemon2, attacker2 = pipe()
        first = asyncio.create_task(auth.admit_supervisor(*daemon1, KEY))  # type: ignore[arg-type]
        second = asyncio.create_task(auth.admit_supervisor(*daemon2, KEY))  # type: ignore[arg-type]
        await attacker1[0].readexactly(len(MAGIC) + NONCE_BYTES)
        challenge = await attacker2[0].readexactly(len(MAGIC) + NONCE_BYTES)
        attacker1[1].write(challenge[len(MAGIC) :] + b"\0" * MAC_BYTES)
        second.cancel()
        await first

    with pytest.raises(AuthError):
        asyncio.run(scenario())


def test_a_recorded_proof_does_not_serve_again() -> None:
    async def scenario() -> bytes:
        daemon, supervisor = pipe()
        admitted = asyncio.create_task(auth.admit_supervisor(*daemon, KEY))  # type: ignore[arg-type]
        await auth.prove_to_daemon(*supervisor, KEY)  # type: ignore[arg-type]
        await admitted
        recorded = supervisor[1].sent
        daemon, attacker = pipe()
        again = asyncio.create_task(auth.admit_supervisor(*daemon, KEY))  # type: ignore[arg-type]
        attacker[1].write(recorded)
        await again
        return recorded

    with pytest.raises(AuthError):
        asyncio.run(scenario())


def test_a_peer_that_speaks_something_else_is_named() -> None:
    async def scenario() -> None:
        daemon, supervisor = pipe()
        daemon[1].write(b"HTTP/1.1 400 Bad Request\r\n" + b" " * 32)
        await auth.prove_to_daemon(*supervisor, KEY)  # type: ignore[arg-type]

    with pytest.raises(AuthError, match="no Holdfast daemon"):
        asyncio.run(scenario())


def test_a_silent_peer_does_not_hold_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "HANDSHAKE_TIMEOUT_S", 0.05)

    async def scenario() -> None:
        daemon, _ = pipe()
        await auth.admit_supervisor(*daemon, KEY)  # type: ignore[arg-type]

    with pytest.raises(TimeoutError):
        asyncio.run(scenario())


def test_a_new_key_is_ours_alone_and_stays_the_same(tmp_path) -> None:
    path = tmp_path / "key"
    key = create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) == 32
    assert create_key(path) == key == read_key(path)
    assert os.listdir(tmp_path) == ["key"]


def test_all_that_create_the_key_at_once_get_the_same(tmp_path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: create_key(tmp_path / "key"), range(32)))
    assert len(keys) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode: int) -> None:
    path = tmp_path / "key"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"{mode:04o}"):
        read_key(path)


@pytest.mark.parametrize(
    ("text", "says"), [("zz" * 32, "hexadecimal"), ("ab" * 31, "31 bytes"), ("", "0 bytes"), ("é" * 64, "hexadecimal")]
)
def test_what_is_no_key_is_refused(tmp_path, text: str, says: str) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(KeyFileError, match=says):
        read_key(path)


def test_a_missing_key_and_a_folder_are_refused(tmp_path) -> None:
    with pytest.raises(KeyFileError, match="cannot read"):
        read_key(tmp_path / "none")
    with pytest.raises(KeyFileError, match="regular file"):
        read_key(tmp_path)
