"""Tokenizers, as far as preparing data needs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import numpy as np

from trainer.data.errors import SourceError, SourceNotFoundError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]")


class Tokenizer(Protocol):
    """eos_id ends each document. pad_id is -1 when there is none. Ids are below vocab_size."""

    name: str
    vocab_size: int
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> np.ndarray:
        """Ids of the text alone, without EOS: uint32 (N,)."""
        ...

    def decode(self, ids: np.ndarray) -> str: ...

    def token_bytes(self) -> np.ndarray:
        """int64 (vocab_size,): how many bytes of UTF-8 each token stands for; 0 for special ones."""
        ...


class ByteTokenizer:
    """UTF-8 bytes are ids 0 to 255, EOS is 256, PAD 257. Nothing to train, nothing to download."""

    name = "byte"
    vocab_size = 258
    eos_id = 256
    pad_id = 257
    vocabularies = (258, 384)  # of models for bytes: as they are, and padded to a multiple of 128

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    def decode(self, ids: np.ndarray) -> str:
        """Special ids are left out; bytes that are no UTF-8, as at a window's edge, become U+FFFD."""
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")

    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocab_size) < 256).astype(np.int64)


class HuggingFaceTokenizer:
    """A `tokenizer.json`, read by the `tokenizers` library. Special tokens spelled out in a text stay ordinary text.

    `eos` names the token that ends documents; empty: the first of the usual names that the vocabulary has. Raises
    SourceNotFoundError or SourceError: no such file, unreadable, no EOS, or the library isn't installed.
    """

    def __init__(self, path: Path, eos: str = "") -> None:
        path = Path(path)
        if not path.is_file():
            raise SourceNotFoundError(f"tokenizer file {path} doesn't exist")
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError as error:
            raise SourceError(f"reading {path} needs the tokenizers library: pip install tokenizers") from error
        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise SourceError(f"{path} is no tokenizer.json: {error}") from error
        self._backend.encode_special_tokens = True
        self.name = path.parent.name if path.name == "tokenizer.json" else path.stem
        # Added tokens may leave holes, so the size is not the number of entries.
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos_id = self._id((eos,) if eos else _EOS_NAMES)
        self.pad_id = self._id(_PAD_NAMES)
        if self.eos_id < 0:
            raise SourceError(f"{path} has no token {eos or ' or '.join(_EOS_NAMES)}: name its end of text with --eos")

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def decode(self, ids: np.ndarray) -> str:
        return self._backend.decode(np.asarray(ids).tolist(), skip_special_tokens=True)

    def token_bytes(self) -> np.ndarray:
        """Byte-level vocabularies spell each byte as one character; others write a space as U+2581 and a byte as <0xNN>."""
        byte_level = '"ByteLevel"' in self._backend.to_str()
        added = self._backend.get_added_tokens_decoder()
        table = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self._backend.get_vocab(with_added_tokens=True).items():
            if index in added:
                table[index] = 0 if added[index].special else len(token.encode())
            elif byte_level:
                table[index] = len(token)
            else:
                table[index] = 1 if _BYTE_TOKEN.fullmatch(token) else len(token.replace("\u2581", " ").encode())
        return table

    def _id(self, names: tuple[str, ...]) -> int:
        found = (self._backend.token_to_id(name) for name in names)
        return next((token for token in found if token is not None), -1)
