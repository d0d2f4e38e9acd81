"""Bytes of tokens: what bits per byte divide by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer

tokenizers = pytest.importorskip("tokenizers")

CORPUS = ["the quick brown fox jumps over the lazy dog", "grüße aus köln", "def f(x):\n    return x", "日本語 text 🙂"]


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback"])
def trained(request, tmp_path_factory) -> HuggingFaceTokenizer:
    specials = ["<|endoftext|>", "<|pad|>"]
    if request.param == "byte_level":
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    else:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
        backend.decoder = tokenizers.decoders.Sequence(
            [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace(prepend_scheme="never")]
        )
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    backend.train_from_iterator(CORPUS * 4, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    text = backend.to_str()
    path.write_text(text)
    return HuggingFaceTokenizer(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(text=st.text(alphabet="the quickbrown fö日🙂x():", max_size=40))
def test_the_tokens_of_a_text_hold_its_bytes(trained, text):
    ids = trained.encode(text)
    assert trained.token_bytes()[ids].sum() == len(text.encode())


def test_special_tokens_hold_none(trained):
    assert trained.token_bytes()[[trained.eos_id, trained.pad_id]].tolist() == [0, 0]


def test_bytes_are_bytes():
    tokenizer = ByteTokenizer()
    assert tokenizer.token_bytes()[tokenizer.encode("köln")].sum() == 5
    assert np.flatnonzero(tokenizer.token_bytes() == 0).tolist() == [256, 257]
