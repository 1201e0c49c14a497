"""Faults that a user can mend; the message says how."""


class ModelError(Exception):
    """Something about a checkpoint, a codec or a vocal that its owner can put right."""


class CodecUnavailable(ModelError):
    """A codec's configuration or weights cannot be had."""


class ControlError(ModelError):
    """What was asked beside the vocal cannot be understood, or not by this model."""

    def __init__(self, control: str, message: str) -> None:
        super().__init__(f"{control}: {message}")
        self.control, self.message = control, message
