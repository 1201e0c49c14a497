"""`python -m training train|distil|evaluate|sweep|codec`: the entry points of a Ray job, and the commands that `backline` shows."""

import sys
from typing import Annotated

from cyclopts import App, Parameter

from infra.cli import exit_codes as commands
from model.errors import ModelError
from training.codec.adversarial import AdversarialConfig
from training.codec.train import CodecTrainConfig
from training.codec.view_training import ViewTrainConfig
from training.config import TrainConfig
from training.evaluation.evaluate import EvaluateConfig
from training.publish.release import ReleaseConfig
from training.run.distil import DistilConfig
from training.sweep.config import SweepConfig

# As a shell says of a process that SIGTERM ended.
INTERRUPTED = 143

app = App(name="training", help="Train on a latent dataset, score a checkpoint, train the embedded codec.")


@app.command
def train(config: Annotated[TrainConfig, Parameter(name="*")]) -> int:
    """Train on a latent dataset, on Ray, tracked in MLflow."""
    from training.run.launch import train as run

    result = run(config)
    sys.stdout.write(
        f"step {result.step} ({result.ended}): " + ", ".join(f"{name} {value:.4g}" for name, value in sorted(result.metrics.items())) + "\n"
        f"checkpoint {result.checkpoint}\n"
        f"MLflow run {result.mlflow_run_id} in {result.tracking_uri}\n"
    )
    return INTERRUPTED if result.stopped else commands.DONE


@app.command
def distil(config: Annotated[DistilConfig, Parameter(name="*")]) -> int:
    """Teach a checkpoint's music to students of fewer steps."""
    from training.run.distil import distil as run

    results = run(config)
    for result in results:
        sys.stdout.write(f"{result.checkpoint}: step {result.step} ({result.ended}), loss {result.metrics['train_loss']:.4g}\n")
    return INTERRUPTED if results[-1].stopped else commands.DONE


@app.command
def evaluate(config: Annotated[EvaluateConfig, Parameter(name="*")]) -> int:
    """Score a checkpoint beside its baselines."""
    from training.evaluation.evaluate import evaluate as run
    from training.evaluation.markdown import markdown

    report = run(config)
    sys.stdout.write(markdown(report))
    sys.stdout.write(f"\nwritten to {report.out}\n")
    return 0


@app.command
def sweep(config: Annotated[SweepConfig, Parameter(name="*")]) -> int:
    """Compare trainings of several depths, widths, losses and guidances: loss against fit."""
    from training.sweep.report import markdown
    from training.sweep.run import sweep as run

    report = run(config)
    sys.stdout.write(markdown(report))
    sys.stdout.write(f"\nwritten to {report.config['out']}\n")
    statuses = {result.status for result in report.trials}
    if "stopped" in statuses:
        return INTERRUPTED
    return commands.SOME_WORK_FAILED if "failed" in statuses else commands.DONE


@app.command
def release(config: Annotated[ReleaseConfig, Parameter(name="*")]) -> int:
    """Write a run's best checkpoint as small files, with its model card."""
    from training.publish.release import release as run

    sys.stdout.write(f"{run(config)}\n")
    return 0


@app.command
def track(run: str, /) -> int:
    """Send MLflow what it has not taken of a run.

    Parameters
    ----------
    run: The place that train or evaluate wrote to.
    """
    from training.publish.mlflow_run import track_again

    left = track_again(run)
    sys.stdout.write(f"{run}: {left} entries refused; they stay in untracked/\n" if left else f"{run}: MLflow has everything\n")
    return 1 if left else 0


@app.command
def promote(model: str, version: str, /, *, alias: str = "champion") -> int:
    """Give a registered model's version an alias, by which it is loaded.

    Parameters
    ----------
    model: The registered model, for example backline.
    version: Its version: a number, or latest.
    alias: The alias that moves there.
    """
    from infra.settings import Settings
    from infra.tracking.registry import promote as give

    found = give(model, version, alias, Settings.from_environment())
    sys.stdout.write(f"models:/{model}@{alias} is version {found.version} now\n")
    return 0


@app.command
def codec(config: Annotated[CodecTrainConfig, Parameter(name="*")]) -> int:
    """Train the embedded codec on song folders."""
    from training.codec.train import train_codec

    train_codec(config)
    return 0


@app.command
def codec_adversarial(config: Annotated[AdversarialConfig, Parameter(name="*")]) -> int:
    """Train the embedded codec's decoder on, against discriminators."""
    from training.codec.adversarial import train_adversarially

    train_adversarially(config)
    return 0


@app.command
def codec_2(config: Annotated[ViewTrainConfig, Parameter(name="*")]) -> int:
    """Train codec 2's autoencoder of views on recordings."""
    from training.codec.view_training import train_views

    train_views(config)
    return 0


def main() -> None:
    commands.main(app, user_errors=(ModelError,))


if __name__ == "__main__":
    main()
