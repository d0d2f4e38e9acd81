from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from trainer.parallel.sockets import cut, open_sockets


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """A listening socket and both ends of a connection through it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        far, _ = listener.accept()
        with far:
            yield listener, near, far


def test_only_connected_internet_sockets_are_cut(pair: tuple) -> None:
    listener, near, far = pair
    ours, theirs = socket.socketpair()
    with ours, theirs:
        mine = [s for s in open_sockets() if s.fd in (listener.fileno(), near.fileno(), ours.fileno())]
        assert len(mine) == 3
        assert cut(mine) == 1
        assert far.recv(1) == b""
        ours.send(b"x")
        assert theirs.recv(1) == b"x"
        with socket.create_connection(listener.getsockname()):
            listener.accept()[0].close()


def test_a_descriptor_that_another_socket_was_given_is_spared(pair: tuple) -> None:
    listener, near, _ = pair
    recorded = {s for s in open_sockets() if s.fd == near.fileno()}
    with socket.create_connection(listener.getsockname()) as other:
        far, _ = listener.accept()
        with far:
            os.dup2(other.fileno(), near.fileno())
            assert cut(recorded) == 0
            other.send(b"x")
            assert far.recv(1) == b"x"


def test_a_closed_socket_is_passed_over() -> None:
    gone = socket.socket()
    recorded = {s for s in open_sockets() if s.fd == gone.fileno()}
    assert recorded
    gone.close()
    assert cut(recorded) == 0
