"""Faults that a user can mend; the message says how."""


class ModelError(Exception):
    """Something about a checkpoint, a codec or a vocal that its owner can put right."""


class CodecUnavailable(ModelError):
    """A codec's configuration or weights cannot be had."""
