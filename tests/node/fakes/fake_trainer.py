"""A trainer, and a store, that train nothing: they say what the worker protocol lets them say."""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import sys
import time

ALONE_S = 2.0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["train", "store"])
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--step-s", type=float, default=0.01)
    parser.add_argument("--fail-at", type=int, default=-1)
    parser.add_argument("--deaf", action="store_true", help="does not obey stop")
    parser.add_argument("--child", action="store_true", help="leaves a process behind that holds the socket")
    parser.add_argument("--silent-s", type=float, default=0.0, help="before it connects")
    parser.add_argument("--run")
    parser.add_argument("--attempt", type=int, default=0)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=4711)
    options = parser.parse_args(argv)
    time.sleep(options.silent_s)
    return Store(options).run() if options.kind == "store" else Trainer(options).run()


class Peer:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sock: socket.socket | None = None
        self.rest = b""
        self.lost_at = time.monotonic()

    def connect(self) -> bool:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(os.environ["HOLDFAST_WORKER_SOCKET"])
        except OSError:
            sock.close()
            return False
        self.sock, self.rest = sock, b""
        return True

    def say(self, **message: object) -> None:
        try:
            if self.sock:
                self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.lose()

    def lose(self) -> None:
        self.sock, self.lost_at = None, time.monotonic()

    def heard(self, timeout_s: float) -> list[dict]:
        assert self.sock
        if not select.select([self.sock], [], [], timeout_s)[0]:
            return []
        try:
            data = self.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.lose()
            return []
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def alone_for_too_long(self) -> bool:
        return self.sock is None and time.monotonic() - self.lost_at > ALONE_S

    def greet(self) -> None:
        raise NotImplementedError

    def turn(self) -> int | None:
        raise NotImplementedError

    def run(self) -> int:
        while True:
            if self.sock is None:
                if self.alone_for_too_long():
                    return 75
                if not self.connect():
                    time.sleep(0.02)
                    continue
                self.greet()
            else:
                code = self.turn()
                if code is not None:
                    return code


class Store(Peer):
    def greet(self) -> None:
        o = self.options
        print(os.getpid(), flush=True)
        self.say(type="store", run=o.run, attempt=o.attempt, host=o.host, port=o.port, pid=os.getpid())

    def turn(self) -> int | None:
        self.heard(1.0)
        return None


class Trainer(Peer):
    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.run_name, self.rank = os.environ["HOLDFAST_RUN"], int(os.environ["RANK"])
        self.attempt = self.newest = 0
        self.step = 0

    def greet(self) -> None:
        self.say(type="hello", version=1, run=self.run_name, rank=self.rank, pid=os.getpid(), attempt=self.attempt)

    def turn(self) -> int | None:
        for message in self.heard(self.options.step_s):
            code = self.obey(message)
            if code is not None:
                return code
        if self.attempt:
            return self.train()
        return None

    def obey(self, message: dict) -> int | None:
        if message["type"] == "join" and message["attempt"] > self.newest:
            self.join(message)
        elif message["type"] == "leave":
            self.leave(message)
        elif message["type"] == "stop" and not self.options.deaf:
            self.say(type="bye", attempt=self.attempt, reason="stopped", step=self.step)
            return 0
        return None

    def join(self, message: dict) -> None:
        print(f"joined attempt {message['attempt']} of {message['world_size']} with {message['store']}", flush=True)
        self.attempt = self.newest = message["attempt"]
        self.say(type="phase", attempt=self.attempt, phase="init")
        self.say(type="phase", attempt=self.attempt, phase="restore")
        self.say(type="phase", attempt=self.attempt, phase="train", step=self.step, source="init", detail="", later=1)

    def leave(self, message: dict) -> None:
        left = {"step": self.step, "voted_step": self.step + 1, "holds_state": True, "holds_gradients": False}
        self.say(type="left", attempt=self.newest, why=message["why"], **left)
        self.attempt = 0

    def train(self) -> int | None:
        self.step += 1
        if self.step == self.options.fail_at:
            print("RuntimeError: the loss went away", flush=True)
            self.say(type="fault", attempt=self.attempt, kind="exception", detail="the loss went away")
            return 3
        self.say(
            type="progress", attempt=self.attempt, step=self.step, tokens=self.step * 100, loss=2.0, grad_norm=1.0,
            step_ms=10.0, data_ms=1.0, checkpoint_ms=0.5,
        )  # fmt: skip
        if self.step % 10 == 0 and self.rank == 0:
            self.say(type="checkpoint", attempt=self.attempt, step=self.step, path=f"/c/{self.step}", digest="d")
        if self.step >= self.options.steps:
            if self.options.child and os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            self.say(type="bye", attempt=self.attempt, reason="completed", step=self.step)
            return 0
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
