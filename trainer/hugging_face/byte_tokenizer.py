"""The byte tokenizer as a `tokenizer.json`, so that an export of a small model reads and writes text in transformers.

It is byte-level BPE without merges: each byte stands for itself. Written as data, since the tokenizers library need not
be installed where an export is made.
"""

from __future__ import annotations

import json

from trainer.data.tokenizer import ByteTokenizer

_EOS, _PAD = "<|endoftext|>", "<|pad|>"


def byte_tokenizer_files() -> dict[str, bytes]:
    """The content of `tokenizer.json` and `tokenizer_config.json`."""
    special = [(ByteTokenizer.eos_id, _EOS), (ByteTokenizer.pad_id, _PAD)]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [_special(token, text) for token, text in special],
        "pre_tokenizer": _BYTE_LEVEL,
        "post_processor": None,
        "normalizer": None,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": {sign: byte for byte, sign in enumerate(_signs())}, "merges": []},
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _EOS, "pad_token": _PAD}
    return {"tokenizer.json": _dump(tokenizer), "tokenizer_config.json": _dump(config)}


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _signs() -> list[str]:
    """GPT-2's printable sign for each byte: itself where it is printable, else the next one from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _special(token: int, text: str) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": text, **flags}


def _dump(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
