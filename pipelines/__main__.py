"""python -m pipelines corpus|prepare: the same commands as backline's, as a Ray job's entry point."""

import sys
from typing import Annotated

from cyclopts import App, Parameter

from infra import commands
from model.errors import ModelError
from pipelines.corpus import CorpusConfig, write_corpus
from pipelines.corpus.listening import ListeningSetConfig, write_listening_set
from pipelines.demo_latents import DemoLatentsConfig, make_demo_latents
from pipelines.prepare import PrepareConfig
from pipelines.prepare import prepare as run_prepare

app = App(name="pipelines", help="Songs and datasets.")


@app.command
def corpus(config: Annotated[CorpusConfig, Parameter(name="*")]) -> int:
    """Write the demo corpus: songs with vocals, accompaniment, mixture and their truth."""
    sys.stdout.write(f"{write_corpus(config)}\n")
    return commands.DONE


@app.command
def listening_set(config: Annotated[ListeningSetConfig, Parameter(name="*")]) -> int:
    """Write the listening set: reserved demo songs under the conditions that real vocals come in."""
    sys.stdout.write(f"{config.out}: {write_listening_set(config)}\n")
    return commands.DONE


@app.command
def demo_latents(config: Annotated[DemoLatentsConfig, Parameter(name="*")]) -> int:
    """Make demo songs straight to latents, in processes of this machine; run again, it does only what is missing."""
    sys.stdout.write(f"{make_demo_latents(config)}\n")
    return commands.DONE


@app.command
def prepare(config: Annotated[PrepareConfig, Parameter(name="*")]) -> int:
    """Turn any source of songs into a latent dataset; run again, it does only what is missing."""
    summary = run_prepare(config)
    sys.stdout.write(f"{summary}\n")
    return summary.exit_code


def main() -> None:
    commands.main(app, user_errors=(ModelError,))


if __name__ == "__main__":
    main()
