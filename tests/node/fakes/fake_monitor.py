"""A health monitor whose node is well until it is told otherwise.

Arguments: --mark PATH, --interval S, --die (at once), --mute-after N (rounds), --no-probe
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def finding(gpu: int, xid: int) -> dict:
    return {
        "check": "xid", "cause": f"xid_{xid}", "severity": "fatal", "action": "reset_gpu", "gpu": gpu,
        "sentence": f"GPU {gpu} reported XID {xid}.", "evidence": {"xid": str(xid)},
    }  # fmt: skip


def obey(message: dict, wrong: list[dict], options: argparse.Namespace) -> None:
    if message["type"] == "inject":
        wrong.append(finding(message["gpu"], message["xid"]))
    elif message["type"] == "probe" and not options.no_probe:
        say(type="probed", id=message["id"], ok=not wrong, findings=wrong)
    elif message["type"] in ("reset", "reboot"):
        for found in wrong:
            say(type="finding", cleared=True, **found)
        wrong.clear()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mark")
    parser.add_argument("--interval", type=float, default=0.1)
    parser.add_argument("--die", action="store_true")
    parser.add_argument("--mute-after", type=int, default=10**9)
    parser.add_argument("--no-probe", action="store_true")
    options = parser.parse_args()
    if options.die:
        sys.exit("no NVML here")
    wrong: list[dict] = []
    number, rest = 0, b""
    while True:
        number += 1
        if number <= options.mute_after:
            say(type="round", round=number, ms=1.0)
            for found in wrong:
                say(type="finding", **found)
        if not select.select([sys.stdin], [], [], options.interval)[0]:
            continue
        # Not readline: what it reads ahead, select does not see.
        data = os.read(0, 65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            obey(json.loads(line), wrong, options)


if __name__ == "__main__":
    main()
