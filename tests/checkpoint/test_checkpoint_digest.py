"""Digests: equal bits and nothing else are equal."""

from __future__ import annotations

import hashlib

import pytest
import torch

from trainer.checkpoint.digest import bytes_digest, json_digest, state_digest

BASE = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3)}


def test_the_state_digest_ignores_order_and_strides():
    turned = {"b": BASE["b"], "a": torch.tensor([[1.0], [2.0]]).t()}
    assert state_digest(turned) == state_digest(BASE)
    assert state_digest({"a": BASE["a"].clone().requires_grad_(), "b": BASE["b"]}) == state_digest(BASE)


@pytest.mark.parametrize(
    "other",
    [
        {**BASE, "b": torch.tensor(4)},
        {**BASE, "b": torch.tensor(3, dtype=torch.int32)},
        {**BASE, "b": torch.tensor([3])},
        {**BASE, "a": BASE["a"].reshape(2, 1)},
        {"a": BASE["a"], "c": BASE["b"]},
        {"a": BASE["a"]},
        {**BASE, "a": torch.nextafter(BASE["a"], torch.tensor(9.0))},
    ],
)
def test_any_difference_shows(other):
    assert state_digest(other) != state_digest(BASE)


def test_empty_pieces_count_by_name_and_shape():
    digests = {state_digest(state) for state in ({}, {"e": torch.empty(0, 4)}, {"e": torch.empty(0, 5)})}
    assert len(digests) == 3


def test_signs_of_zero_and_bfloat16_count_as_bits():
    assert state_digest({"z": torch.tensor([0.0])}) != state_digest({"z": torch.tensor([-0.0])})
    assert state_digest({"z": torch.tensor([1.5]).bfloat16()}) != state_digest({"z": torch.tensor([1.5]).half()})


def test_json_and_bytes():
    assert json_digest({"b": 1, "a": [0.1]}) == json_digest({"a": [0.1], "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        json_digest({"loss": float("nan")})
    assert bytes_digest(b"abc") == hashlib.sha256(b"abc").hexdigest()
