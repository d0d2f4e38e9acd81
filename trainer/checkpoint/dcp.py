"""Export for PyTorch's own tools: a checkpoint as torch.distributed.checkpoint has it.

Ours are not written that way, since its metadata file is a pickle, and its asynchronous save meets in collectives. The
export holds whole tensors under the names that ours have ("weights.NAME", "exp_avg.NAME", "exp_avg_sq.NAME") and
"step", int64 (). Our reader never reads it back.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch

from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.folders import AnyFolder
from trainer.checkpoint.reader import open_shards


def export_dcp(path: AnyFolder, out: Path, *, slots: tuple[str, ...] = ("weights", "exp_avg", "exp_avg_sq")) -> int:
    """Write the tensors of these slots to the new folder `out`; the bytes of them. Needs host memory for all of them.

    Digests are checked while reading. Raises CheckpointError: damaged, no such slot, or `out` is not empty; OSError.
    """
    import torch.distributed.checkpoint as dcp

    shards = open_shards(path)
    wanted = {name: None for name in shards.tensors() if name.partition(".")[0] in slots}
    if not wanted:
        raise CheckpointError(f"{path} holds nothing of {', '.join(slots)}")
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty; name a new folder")
    tensors: dict[str, torch.Tensor] = dict(shards.read(wanted))
    tensors["step"] = torch.tensor(shards.meta.position)
    try:
        with warnings.catch_warnings(action="ignore"):  # that one process saves alone is meant
            dcp.save(tensors, checkpoint_id=out, no_dist=True)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return sum(tensor.nbytes for tensor in tensors.values())
