"""python -m pipelines corpus|prepare|takedown|check|compact|…: the same commands as backline's, as a Ray job's entry point."""

import sys
from typing import Annotated

from cyclopts import App, Parameter

from infra.cli import exit_codes as commands
from model.errors import ModelError
from pipelines.corpus import CorpusConfig, write_corpus
from pipelines.corpus.latents import DemoLatentsConfig, make_demo_latents
from pipelines.corpus.listening_set import ListeningSetConfig, write_listening_set
from pipelines.dataset.check import CheckConfig
from pipelines.dataset.check import check as run_check
from pipelines.dataset.compact import CompactConfig
from pipelines.dataset.compact import compact as run_compact
from pipelines.dataset.takedown import TakedownConfig
from pipelines.dataset.takedown import takedown as run_takedown
from pipelines.report.page import DatasetReportConfig
from pipelines.report.page import dataset_report as run_dataset_report
from pipelines.run.prepare import PrepareConfig
from pipelines.run.prepare import prepare as run_prepare

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


@app.command
def takedown(config: Annotated[TakedownConfig, Parameter(name="*")]) -> int:
    """Remove a song from a dataset with all that came of it, for good; list the runs that were trained on it."""
    sys.stdout.write(f"{run_takedown(config)}\n")
    return commands.DONE


@app.command
def check(config: Annotated[CheckConfig, Parameter(name="*")]) -> int:
    """Verify a dataset: every row of every file against its manifest; exit 1 if something is wrong."""
    summary = run_check(config)
    sys.stdout.write(f"{summary}\n")
    return summary.exit_code


@app.command
def compact(config: Annotated[CompactConfig, Parameter(name="*")]) -> int:
    """Join a dataset's many small files into few large ones; no row changes."""
    sys.stdout.write(f"{run_compact(config)}\n")
    return commands.DONE


@app.command
def dataset_report(config: Annotated[DatasetReportConfig, Parameter(name="*")]) -> int:
    """Write a page on what a dataset holds: counts, hours, rejects, latent statistics, pairs to listen to."""
    sys.stdout.write(f"{run_dataset_report(config)}\n")
    return commands.DONE


def main() -> None:
    commands.main(app, user_errors=(ModelError,))


if __name__ == "__main__":
    main()
