"""The rendezvous store listens where it is told, and nowhere else."""

from __future__ import annotations

import psutil
import pytest
from torch.distributed import TCPStore

from trainer.store import serve


def test_it_listens_on_the_given_address_alone_and_serves() -> None:
    store = serve("127.0.0.1")
    listening = [
        c.laddr for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == store.port
    ]
    assert [address.ip for address in listening] == ["127.0.0.1"]
    client = TCPStore("127.0.0.1", store.port, is_master=False)
    client.set("key", "value")
    assert store.get("key") == b"value"


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match="assign"):
        serve("192.0.2.77")
