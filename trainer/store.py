"""The rendezvous store of one attempt: a TCPStore server in a process of its own.

In a process of its own because gloo's sockets may be cut, and trainers killed, without losing it.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import TCPStore

from trainer.protocol.client import WorkerClient


def main(argv: list[str], environ: Mapping[str, str]) -> int:
    """Serve until ended. Without a supervisor for some seconds the client ends the process with exit code 75."""
    parser = argparse.ArgumentParser(prog="python -m trainer store", description="Rendezvous store of one attempt.")
    parser.add_argument("--run", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--host", required=True)
    args = parser.parse_args(argv)
    store = TCPStore(args.host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
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
