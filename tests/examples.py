"""How many examples a property is tried on: few in `make test`, all of them in `make test-all`."""

import os

FEW = 30


def examples(full: int) -> int:
    """`full` where BACKLINE_EXAMPLES is `full`, else at most thirty."""
    return full if os.environ.get("BACKLINE_EXAMPLES") == "full" else min(full, FEW)
