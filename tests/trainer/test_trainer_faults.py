"""What an exception of an attempt means to the supervisor."""

from __future__ import annotations

import pytest

from trainer.config_parse import ConfigError
from trainer.data.errors import DataError, DataMismatchError, VocabularyError
from trainer.train.faults import classify
from trainer.train.step import PeerFaultError, UnstableError


@pytest.mark.parametrize(
    ("error", "kind", "final"),
    [
        (ConfigError("steps", "must be positive"), "config", True),
        (VocabularyError("part-000.npy: token 9999 at offset 7 is outside the vocabulary"), "config", True),
        (DataMismatchError("the seed differs"), "config", True),
        (DataError("part-000.npy can't be read: Input/output error"), "data", True),
        (UnstableError("steps 3 to 18 were all skipped"), "unstable", True),
        (PeerFaultError("rank 2 went away"), "peer", False),
        (RuntimeError("[transport/tcp/pair.cc] gloo: Connection closed by peer"), "peer", False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "exception", True),
        (ValueError("shapes differ"), "exception", False),
    ],
)
def test_classified(error: Exception, kind: str, final: bool) -> None:
    fault = classify(error)
    assert (fault.kind, fault.final) == (kind, final)
