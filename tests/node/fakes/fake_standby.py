"""A standby of the standard library alone: speaks the worker protocol's side of it and forks the fake trainer.

Arguments: --mark PATH (to find its processes), --ready-after S, --die-once FILE (before the first answer), --never-ready
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fake_trainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mark")
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--die-once", type=Path)
    parser.add_argument("--never-ready", action="store_true")
    options = parser.parse_args()
    sock = socket.socket(fileno=int(os.environ["HOLDFAST_STANDBY_FD"]))
    file = sock.makefile("rwb")
    time.sleep(options.ready_after)
    if not options.never_ready:
        say(file, {"type": "ready", "pid": os.getpid(), "import_s": 0.0})
    for raw in file:
        request = json.loads(raw)
        if request["argv"][0] == "fail":
            say(file, {"type": "fork_failed", "id": request["id"], "error": "no such workload"})
            continue
        pid = fork(request, sock)
        if options.die_once and not options.die_once.exists():
            options.die_once.touch()
            os._exit(1)
        say(file, {"type": "forked", "id": request["id"], "pid": pid})


def say(file, message) -> None:
    file.write(json.dumps(message).encode() + b"\n")
    file.flush()


def fork(request, sock) -> int:
    reading, writing = os.pipe()
    middle = os.fork()
    if middle:
        os.close(writing)
        os.waitpid(middle, 0)
        pid = int(os.read(reading, 32))
        os.close(reading)
        return pid
    child = os.fork()
    if child:
        os.write(writing, str(child).encode())
        os._exit(0)
    os.close(reading)
    os.close(writing)
    os.close(sock.fileno())
    os.setsid()
    log = os.open(request["log_path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    code = 1
    try:
        code = fake_trainer.main(request["argv"])
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
