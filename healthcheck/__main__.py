"""`python -m healthcheck`: are the GPUs of this machine well? Exit code 0 yes, 1 no, 4 there is no GPU or driver."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from healthcheck import scan
from healthcheck.checks.catalogue import findings, run_checks
from healthcheck.simulated.state import StateFileError
from healthcheck.sources import open_source
from healthcheck.spec import SPECS
from healthcheck.telemetry import NvmlUnavailable, TelemetryError

EXIT_HEALTHY, EXIT_FINDINGS, EXIT_NO_GPU = 0, 1, 4


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m healthcheck", description="Check the GPUs of this machine once.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--telemetry", choices=("nvml", "simulated"), default="nvml")
    parser.add_argument("--profile", choices=tuple(SPECS), default="", help="what the node should look like")
    parser.add_argument("--state", type=Path, help="file in which a simulated node keeps its faults")
    parser.add_argument("--idle", action="store_true", help="no job should be running: check for leaked memory")
    options = parser.parse_args(argv)
    try:
        source = open_source(options.telemetry, options.profile, options.state)
        snapshot = source.connect().snapshot()
        if not snapshot.gpus:
            raise NvmlUnavailable("the NVIDIA driver runs but shows no GPU")
    except (TelemetryError, StateFileError) as error:
        return _refuse(error, options.json)
    verdicts = run_checks(snapshot, None, replace(source.spec, idle=options.idle))
    answer = scan.as_json(snapshot, verdicts) if options.json else None
    print(json.dumps(answer) if answer else scan.as_table(snapshot, verdicts))
    return EXIT_FINDINGS if findings(verdicts) else EXIT_HEALTHY


def _refuse(error: Exception, as_json: bool) -> int:
    no_gpu = isinstance(error, NvmlUnavailable)
    if as_json:
        print(json.dumps({"gpus": 0, "checks": [], "findings": [], "error": str(error)}))
    else:
        hint = "" if not no_gpu else " (`--telemetry simulated` checks a simulated node instead)"
        print(f"No GPU was checked: {error}{hint}", file=sys.stderr)
    return EXIT_NO_GPU if no_gpu else EXIT_FINDINGS


if __name__ == "__main__":
    sys.exit(main())
