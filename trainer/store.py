"""The rendezvous store of one attempt: a TCPStore server in a process of its own.

In a process of its own because gloo's sockets may be cut, and trainers killed, without losing it.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import TCPStore

from trainer.protocol.client import WorkerClient


def serve(host: str) -> TCPStore:
    """A server on a free port of this host's address alone: left to itself TCPStore listens on every interface."""
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    listener = socket.create_server((host, 0), family=family, backlog=1024)
    port = listener.getsockname()[1]
    timeout = timedelta(seconds=30)
    # The store owns the descriptor from here on.
    return TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=listener.detach()
    )


def main(argv: list[str], environ: Mapping[str, str]) -> int:
    """Serve until ended. Without a supervisor for some seconds the client ends the process with exit code 75."""
    parser = argparse.ArgumentParser(prog="python -m trainer store", description="Rendezvous store of one attempt.")
    parser.add_argument("--run", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--host", required=True)
    args = parser.parse_args(argv)
    store = serve(args.host)
    greeting = {
        "type": "store",
        "run": args.run,
        "attempt": args.attempt,
        "host": args.host,
        "port": store.port,
        "pid": os.getpid(),
    }
    WorkerClient(environ["HOLDFAST_WORKER_SOCKET"], lambda: greeting, lambda message: None).start()
    threading.Event().wait()
    return 0
