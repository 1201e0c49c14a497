"""How every command line of the project ends: one line for wrong usage, and the exit codes of the public interface."""

import logging
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

import cyclopts
from cyclopts import App, CycloptsError, Parameter

from infra.errors import UserError
from infra.logs import configure
from infra.settings import Settings, export, log_environment

DONE, SOME_WORK_FAILED, WRONG_USAGE = 0, 1, 2

log = logging.getLogger(__name__)


def _parted(kind: Any, tokens: Sequence[Any]) -> tuple[Any, ...]:
    element = get_args(kind)[0]
    return tuple(cyclopts.convert(element, [part.strip()]) for token in tokens for part in token.value.split(",") if part.strip())


LISTED = Parameter(converter=_parted, consume_multiple=True, negative="")
"""For a tuple[X, ...]: `--depth 2,3,4`, `--depth 2 3 4` and `--depth 2 --depth 3` alike."""


def run(app: App, tokens: Sequence[str] | None = None, *, user_errors: tuple[type[Exception], ...] = ()) -> int:
    """Runs one command of `app` and returns its exit code.

    Wrong options, values that a config refuses (ValueError while it is built, not later), `UserError` and `user_errors` become one line on
    standard error and exit code 2; anything else is a fault of ours and keeps its traceback.
    """
    tokens = sys.argv[1:] if tokens is None else list(tokens)
    mendable: tuple[type[Exception], ...] = (UserError, *user_errors)
    usage: tuple[type[Exception], ...] = (CycloptsError, ValueError, *mendable)
    try:
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    except usage as error:
        return refuse(app, error)
    try:
        code = command(*bound.args, **bound.kwargs)
    except mendable as error:
        log.debug("refused", exc_info=True)
        return refuse(app, error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return code if isinstance(code, int) else DONE


def main(app: App, *, user_errors: tuple[type[Exception], ...] = ()) -> NoReturn:
    """Ends the process with `run`'s exit code; a variable that cannot be is refused as a wrong option is."""
    try:
        settings = Settings.from_environment()
        configure(settings.log_level, settings.log_format)
        export(log_environment(settings))
    except UserError as error:
        sys.exit(refuse(app, error))
    sys.exit(run(app, user_errors=user_errors))


def refuse(app: App, error: Exception) -> int:
    """Says `error` in one line."""
    sys.stderr.write(f"{app.name[0]}: {' '.join(str(error).split())}\n")
    return WRONG_USAGE
