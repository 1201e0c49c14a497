"""Faults that a user can mend; the message says how."""


class UserError(Exception):
    """Wrong input or a missing outside thing: the message gives the value, the constraint and the remedy in one line."""
