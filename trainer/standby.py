"""A warm parent of trainers: it has imported what they need, and forks them in tens of milliseconds.

A fork has only the thread that forked, so the standby must start none and run no parallel operator: a pool of threads
would be missing in its children, which would wait for it for ever. It touches no CUDA, which survives no fork.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from trainer.__main__ import main as trainer_main
from trainer.__main__ import run_and_exit

Main = Callable[[list[str]], int]
_POOLS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def warm_up() -> float:
    """Import what a trainer needs up to its first step; returns the seconds it took.

    Raises RuntimeError when a thread was started.
    """
    begin = time.monotonic()
    os.environ.update(dict.fromkeys(_POOLS, "1"))  # else numpy's and torch's BLAS start threads at import
    import torch
    import torch._dynamo  # FSDP2 imports it when it first shards a module, which takes half as long as torch itself
    import torch.distributed.fsdp

    import trainer.store
    import trainer.train.loop  # noqa: F401

    with torch.device("meta"):  # the first use imports torch's reference operators
        torch.empty(1)
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, every page that holds an object
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"an import started {threads - 1} threads; forks of this process would hang")
    return time.monotonic() - begin


def serve(line: socket.socket, main: Main) -> None:
    """Fork for each request on the line, until its end."""
    _say(line, {"type": "ready", "pid": os.getpid(), "import_s": round(warm_up(), 3)})
    with line.makefile("rb") as requests:
        for text in requests:
            request = json.loads(text)
            if request.get("type") != "fork":
                continue
            try:
                answer = {"type": "forked", "id": request["id"], "pid": fork(request, main)}
            except (OSError, KeyError) as error:
                why = f"{type(error).__name__}: {error}"
                answer = {"type": "fork_failed", "id": request.get("id"), "error": why}
            _say(line, answer)


def fork(request: dict, main: Main) -> int:
    """Start the request's command in a grandchild, which its nearest subreaper adopts; returns its pid.

    Raises OSError when a fork fails, KeyError when the request lacks a field.
    """
    if missing := {"argv", "env", "log_path", "cwd"} - request.keys():
        raise KeyError(*missing)
    pid_out, pid_in = os.pipe()
    child = os.fork()
    if child == 0:
        _fork_again(request, main, pid_in)
    os.close(pid_in)
    with open(pid_out, "rb") as said:
        answer = said.read()
    os.waitpid(child, 0)
    if not answer.isdigit():
        raise OSError(answer.decode() or "the child died")
    return int(answer)


def _fork_again(request: dict, main: Main, pid_in: int) -> NoReturn:
    try:
        grandchild = os.fork()
    except OSError as error:
        os.write(pid_in, str(error).encode())
        os._exit(1)
    if grandchild:
        os.write(pid_in, str(grandchild).encode())
        os._exit(0)

    def run() -> int:
        _isolate(request)
        return main([str(word) for word in request["argv"]])

    run_and_exit(run)


def _isolate(request: dict) -> None:
    os.setsid()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # As in any Python: writing to a connection that is cut must be an error, not the end of the process.
        ignored = number in (signal.SIGPIPE, signal.SIGXFSZ)
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.chdir(request["cwd"])
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log_path"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update({str(key): str(value) for key, value in request["env"].items()})


def _say(line: socket.socket, message: dict) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


def run(main: Main) -> int:
    """Serve on the inherited socket that HOLDFAST_STANDBY_FD names."""
    number = os.environ.get("HOLDFAST_STANDBY_FD", "")
    if not number.isdigit():
        print("HOLDFAST_STANDBY_FD must name an inherited Unix stream socket", file=sys.stderr)
        return 2
    with socket.socket(fileno=int(number)) as line:
        serve(line, main)
    return 0


if __name__ == "__main__":
    sys.exit(run(trainer_main))
