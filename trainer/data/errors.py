"""Errors of the data package. Their messages are for the user: what is wrong, where, what to do."""

from __future__ import annotations


class DataError(Exception):
    """Token files or their configuration can't be used."""


class VocabularyError(DataError):
    """A token file holds a token that the model has no embedding for: it was made with another tokenizer."""


class SourceError(DataError):
    """A source text can't be prepared."""


class SourceNotFoundError(SourceError):
    """A source, tokenizer or token file doesn't exist."""


class DataMismatchError(DataError):
    """A checkpoint was trained on other data, or in another order, than the configuration names."""


class PrefetcherStoppedError(DataError):
    """`next` was called on, or was waiting for, a prefetcher that is stopped."""
