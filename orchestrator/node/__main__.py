"""`python -m orchestrator.node`: the supervisor of one node, until its end. Exit code 0 ended, 1 not started or failed."""

from __future__ import annotations

import asyncio
import sys

import structlog

from orchestrator.link.auth import KeyFileError, read_key
from orchestrator.node.control import ping
from orchestrator.node.fence import FenceError
from orchestrator.node.lock import LockedError, hold_lock
from orchestrator.node.options import Options, parse_options
from orchestrator.node.paths import PathError, require_private
from orchestrator.node.processes import become_subreaper
from orchestrator.node.supervisor import Supervisor


def main() -> int:
    options = parse_options(sys.argv[1:])
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    try:
        options.node_dir.mkdir(parents=True, exist_ok=True)
        require_private(options.sockets)
        key = read_key(options.key)
        with hold_lock(options.node_dir, lambda: _same_life_answers(options)):
            become_subreaper()
            return asyncio.run(serve(options, key))
    except (KeyFileError, LockedError, PathError, FenceError, OSError) as error:
        print(f"supervisor of {options.node}: {error}", file=sys.stderr)
        return 1


def _same_life_answers(options: Options) -> bool:
    found = ping(options.sockets, options.node)
    return found is not None and found.get("boot_id") == options.boot_id


async def serve(options: Options, key: bytes) -> int:
    return await Supervisor(options, key).run()


if __name__ == "__main__":
    sys.exit(main())
