"""Times the kernels on a GPU beside flash-linear-attention and their floors: `python benchmarks/kernels.py --json FILE`.

One process, implementations taking turns, medians. Needs CUDA; fla and transformers are compared with when importable.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Python puts this file's folder first, where the file itself would be taken for the package `kernels`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402

from benchmarks.kernel_bench import fla  # noqa: E402
from benchmarks.kernel_bench.case import Case  # noqa: E402
from benchmarks.kernel_bench.measure import measure  # noqa: E402

GROUPS = ("delta_rule", "neighbours", "block")
_COLUMNS = ("ours", "compiled", "fla", "pytorch")


def main() -> int:
    options = _parser().parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/kernels.py: needs a CUDA GPU; torch.cuda.is_available() is false here", file=sys.stderr)
        return 2
    report: dict[str, Any] = {**_environment(), "results": []}
    for case in _cases(options.only or GROUPS):
        report["results"].append(measure(case, options.rounds))
        print(f"measured {case.operation} {case.shape}", file=sys.stderr)
    print(_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--only", action="append", choices=GROUPS, help="measure this group alone; may be repeated")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls of each implementation (default: 20)")
    return parser


def _environment() -> dict[str, Any]:
    import triton

    environment = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    if fla.available():
        environment["fla"] = fla.version()
        environment["note"] = fla.lift_refusal()
    return environment


def _cases(groups: list[str] | tuple[str, ...]) -> Iterator[Case]:
    """One at a time, so that the tensors of a case are freed before the next one's are made."""
    from benchmarks.kernel_bench import block, delta_rule, neighbours

    modules = {"delta_rule": delta_rule, "neighbours": neighbours, "block": block}
    for group in groups:
        yield from modules[group].cases()


def _table(report: dict[str, Any]) -> str:
    lines = [", ".join(str(report[key]) for key in ("device", "date")) + f", torch {report['torch']}, "
             f"triton {report['triton']}, fla {report.get('fla', 'not importable')}"]  # fmt: skip
    if report.get("note"):
        lines.append(report["note"])
    heads = " | ".join(f"{name} ms" for name in _COLUMNS)
    lines += [
        f"| operation | shape | pass | {heads} | floor ms | ours / floor | peak GiB ours, fla | error |",
        "|" + "---|" * (len(_COLUMNS) + 7),
    ]
    for row in report["results"]:
        lines += [_line(row, name) for name in ("forward", "both") if f"{name}_floor_ms" in row]
    return "\n".join(lines)


def _line(row: dict[str, Any], name: str) -> str:
    found = row["implementations"]
    times = " | ".join(_number(found.get(column, {}).get(f"{name}_ms"), ".3f") for column in _COLUMNS)
    floor = row[f"{name}_floor_ms"]
    peaks = ", ".join(_number(found.get(column, {}).get("peak_gib"), ".2f") for column in ("ours", "fla"))
    ratio = found["ours"][f"{name}_ms"] / floor
    return (
        f"| {row['operation']} | {row['shape']} | {name} | {times} | {floor:.3f} | {ratio:.2f} | {peaks} "
        f"| {_number(row.get('error'), '.1e')} |"
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
