"""Log handlers: the only place that sets them."""

import logging
import sys

# Chatty at INFO, and about nothing that a user of backline can act on.
QUIET = ("botocore", "boto3", "s3transfer", "urllib3", "matplotlib", "numba", "fsspec", "asyncio", "httpx", "alembic")


def configure(level: str = "INFO") -> None:
    """Log to standard error (standard output belongs to results). Called by each entry point; calling again only changes the level."""
    root = logging.getLogger()
    if not any(getattr(handler, "name", None) == "backline" for handler in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.name = "backline"
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
