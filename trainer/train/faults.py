"""What an exception means to the supervisor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from trainer.checkpoint.errors import CheckpointError, CheckpointFormatError, CheckpointMismatchError
from trainer.config_parse import ConfigError
from trainer.data.errors import DataError, DataMismatchError, VocabularyError
from trainer.train.step import DivergenceError, PeerFaultError, UnstableError


@dataclass(frozen=True)
class Fault:
    """`kind` is one of the worker protocol's. A `final` one ends the process: waiting for another join can't help."""

    kind: str
    detail: str
    final: bool = False


def classify(error: Exception) -> Fault:
    """The fault behind an exception of an attempt."""
    detail = f"{type(error).__name__}: {error}"
    match error:
        case ConfigError() | VocabularyError() | DataMismatchError():  # no other attempt can mend these
            return Fault("config", str(error), final=True)
        case CheckpointFormatError() | CheckpointMismatchError():
            return Fault("config", str(error), final=True)
        case DataError():
            return Fault("data", str(error), final=True)
        case CheckpointError():
            return Fault("checkpoint", str(error))
        case UnstableError():
            return Fault("unstable", str(error), final=True)  # the same steps again give the same bits
        case DivergenceError():
            return Fault("divergence", str(error))
        case torch.OutOfMemoryError():
            return Fault("out_of_memory", detail)
        case PeerFaultError() | dist.DistError():
            return Fault("peer", detail)
        case RuntimeError() if _is_lost_connection(str(error)):
            return Fault("peer", detail)
        case RuntimeError() if "CUDA error" in str(error):
            return Fault("exception", detail, final=True)  # the context is lost: only a new process can go on
    return Fault("exception", detail)


def _is_lost_connection(text: str) -> bool:
    """gloo raises plain RuntimeErrors, marked with its source file."""
    return "gloo" in text or "Connection closed by peer" in text or "Connection reset by peer" in text
