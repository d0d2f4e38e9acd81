"""How long a save stalls training, and how its write compares with a plain sequential write of the same bytes.

    python benchmarks/checkpoint.py --folder DIR [--gigabytes 19.2] [--busy_ms 120] [--read] [--json FILE]

The state is float32 tensors of the sizes of the four-layer slice at 7B width (see `slice_shapes`), scaled to
--gigabytes, on the GPU where there is one. Both writes end with fsync, in turns; what was written is removed before the
next. The first round gets the memory ready and does not count. The stall is what AsyncWriter.save and wait_staged take on
the training thread, with --busy_ms of matrix products between the two, as forward and backward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from trainer.checkpoint.image import ShardTensor
from trainer.checkpoint.manifest import CheckpointMeta
from trainer.checkpoint.outcomes import Committed
from trainer.checkpoint.reader import load
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.writer import AsyncWriter

_PATIENCE_S = 600.0
_BLOCK_BYTES = 16 << 20
_MATRIX = 8192


def slice_shapes(total_bytes: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of float32 tensors of about that size in all: three slots of an embedding, a head, and blocks."""
    d_model, shapes = 3840, {}
    weights = total_bytes // 12
    vocab = min(100352, max(128, weights * 3 // 8 // d_model))
    left = weights - 2 * vocab * d_model
    shapes["embedding.weight"] = shapes["head.weight"] = (vocab, d_model)
    blocks = max(1, left // (11008 * d_model))
    shapes |= {f"blocks.{index}.weight": (max(1, left // blocks // d_model), d_model) for index in range(blocks)}
    return {f"{slot}.{name}": shape for slot in ("weights", "exp_avg", "exp_avg_sq") for name, shape in shapes.items()}


def plain_write_s(folder: Path, size: int) -> float:
    """Seconds to write and sync that many random bytes, one block after another."""
    block, path = os.urandom(_BLOCK_BYTES), folder / "plain"
    begin = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for at in range(0, size, _BLOCK_BYTES):
            file.write(block[: size - at])
        os.fsync(file.fileno())
    taken = time.monotonic() - begin
    path.unlink()
    os.sync()
    return taken


def save(
    folder: Path, step: int, tensors: dict[str, ShardTensor], staging: Staging, arguments: argparse.Namespace
) -> dict:
    """One save beside `busy_ms` of other work: its stall, the seconds from its begin to the commit, and of reading."""
    writer = AsyncWriter(folder, 0, 1, 1, staging=staging)
    begun = time.monotonic()
    begin_ms = writer.save(step, tensors, CheckpointMeta(step, step, 1))
    _compute(next(iter(tensors.values())).local.device, arguments.busy_ms)
    wait_ms = writer.wait_staged()
    begin = time.monotonic()
    _synchronize()  # what the wait left to the device, clones among it
    wait_ms += (time.monotonic() - begin) * 1e3
    assert writer.wait(_PATIENCE_S)
    total_s = time.monotonic() - begun
    [committed] = writer.poll()
    assert isinstance(committed, Committed), committed
    found = {"begin_ms": begin_ms, "wait_ms": wait_ms, "write_s": total_s}
    if arguments.read:
        begin = time.monotonic()
        assert writer.settle(_PATIENCE_S)
        found["proof_s"] = time.monotonic() - begin
        begin = time.monotonic()
        load(committed.path, dict.fromkeys(tensors))
        found["load_s"] = time.monotonic() - begin
    else:
        writer.cancel()
        assert writer.settle(_PATIENCE_S)
    for path in Path(committed.path).iterdir():
        path.unlink()
    os.sync()
    return found


def measure(arguments: argparse.Namespace) -> dict:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = slice_shapes(int(arguments.gigabytes * 1e9))
    tensors = {name: ShardTensor(torch.randn(shape, device=device), shape, 0) for name, shape in shapes.items()}
    size = sum(piece.local.nbytes for piece in tensors.values())
    staging = Staging()
    staging.prepare(tensors)
    saves, plain = [], []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for number in range(arguments.repeat + 1):  # the first gets the memory ready
            plain.append(plain_write_s(Path(folder), size))
            saves.append(save(Path(folder) / "checkpoints", number + 1, tensors, staging, arguments))
            print({name: round(value, 3) for name, value in saves[-1].items()}, f"plain_s {plain[-1]:.3f}", flush=True)
    found = {name: statistics.median(each[name] for each in saves[1:]) for name in saves[0]}
    plain_s = statistics.median(plain[1:])
    stall_ms = found["begin_ms"] + found["wait_ms"]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "gigabytes": size / 1e9,
        "busy_ms": arguments.busy_ms,
        "stall_ms": stall_ms,
        "first_stall_ms": saves[0]["begin_ms"] + saves[0]["wait_ms"],
        "write_gb_s": size / 1e9 / found["write_s"],
        "plain_gb_s": size / 1e9 / plain_s,
        "write_share": plain_s / found["write_s"],
        **{f"{name}_gb_s": size / 1e9 / found[f"{name}_s"] for name in ("proof", "load") if arguments.read},
    }


def _compute(device: torch.device, busy_ms: float) -> None:
    """Keep the device busy for about that long, as a step's forward and backward pass."""
    if device.type != "cuda":
        return
    matrix = torch.randn(_MATRIX, _MATRIX, device=device, dtype=torch.bfloat16)
    end = time.monotonic() + busy_ms / 1e3
    while time.monotonic() < end:
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to be measured")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of one save; the slice's is 19.2")
    parser.add_argument("--busy_ms", type=float, default=120.0, help="other work before the update is due")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--read", action="store_true", help="time the proof and a load, too")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments)
    text = json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in found.items()}, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
