"""Errors of Hugging Face folders. Their messages are for the user."""

from __future__ import annotations


class HuggingFaceError(Exception):
    """A folder, a file or a configuration can't be read, doesn't fit the model, or can't be written."""
