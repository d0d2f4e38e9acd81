"""`python -m orchestrator.daemon --state DIR`: what `holdfast up` starts."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import structlog

from orchestrator.daemon.bridge import BridgeRefusedError
from orchestrator.daemon.server import Daemon
from orchestrator.daemon.settings import Settings
from orchestrator.journal.errors import JournalError
from orchestrator.link.auth import KeyFileError
from orchestrator.node.paths import PathError
from orchestrator.recovery.policy import Policy


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="holdfast-daemon", description="The Holdfast daemon of one cluster.")
    parser.add_argument("--state", type=Path, required=True, help="the cluster's state folder")
    args = parser.parse_args(argv)
    configure_logs()
    try:
        settings = Settings.read(args.state)
        return asyncio.run(_serve(args.state, settings))
    except FileNotFoundError as error:
        print(f"{error.filename} is missing: start the cluster with `holdfast up`", file=sys.stderr)
    except (JournalError, BridgeRefusedError, KeyFileError, PathError, TimeoutError) as error:
        print(str(error) or "the Ray bridge gave no word in time", file=sys.stderr)
    return 1


async def _serve(state_dir: Path, settings: Settings) -> int:
    return await Daemon(state_dir, settings, Policy()).serve()


def configure_logs() -> None:
    """One JSON object a line on standard error."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
