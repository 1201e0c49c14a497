"""`python -m serving`: the same as `backline serve`."""

from typing import Annotated

from cyclopts import App, Parameter

from infra.cli import exit_codes as commands
from model.errors import ModelError
from serving import deployments
from serving.deployments import ServeConfig


def serve(
    config: Annotated[ServeConfig, Parameter(name="*")] | None = None,
    *,
    open_page: Annotated[
        bool, Parameter(name="--open", negative="", help="Open the page in this machine's browser once it is ready.")
    ] = False,
) -> int:
    """Answer vocals over HTTP, with a page for musicians, until Ctrl-C. API keys are read from BACKLINE_API_KEYS."""
    deployments.serve(config or ServeConfig(), open_page=open_page)
    return commands.DONE


if __name__ == "__main__":
    app = App(name="serving", help="Answer vocals over HTTP, with a page for musicians.")
    app.default(serve)
    commands.main(app, user_errors=(ModelError,))
