"""What MLflow is told of a training before and after its loop: name, dataset, figures, checkpoint, model card, registered version."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.dataset.credits import stored_credits, write_credits
from infra.dataset.format import Manifest, latents
from infra.errors import UserError
from infra.settings import Settings
from infra.storage.place import Place, localise
from infra.tracking.queue import UNTRACKED
from infra.tracking.registry import Candidate
from infra.tracking.tracking import NOTE_TAG, RUN_FILE, Tracker, read_handle, send_untracked
from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import TrainConfig, size_name
from training.evaluation import plots as figures
from training.publish.model_card import About, card
from training.publish.sample_audio import Listener
from training.state import STATE_JSON, read_metrics

log = logging.getLogger(__name__)

ARTIFACT = "checkpoint"
# Names that every second dataset has; the folder above says which it is.
COMMON_NAMES = ("latents", "data", "dataset")


def run_name(config: TrainConfig, data: Sequence[Place]) -> str:
    """What runs, for a list of runs: preset, dataset, workers, recipe. The run's place is the tag backline.run."""
    size = size_name(config.to_dict())
    what = size if config.distillation is None else f"{size} student of {config.distillation.steps} steps"
    hands = f", {config.workers} workers" if config.workers > 1 else ""
    return f"{what} on {' + '.join(dataset_name(place) for place in data)}{hands} · {config.hash()}"


def dataset_name(data: Place) -> str:
    above = data.uri.rstrip("/").split("/")[-2]
    return f"{above}/{data.name}" if data.name in COMMON_NAMES and above else data.name


def replay(tracker: Tracker, run: Place) -> None:
    """All metrics of an earlier process, which may have been killed before it had sent them; what the run has is not sent again."""
    for row in read_metrics(run):
        tracker.metrics({name: value for name, value in row.items() if name != "step"}, int(row["step"]))


def log_dataset(tracker: Tracker, data: Place, manifest: Manifest) -> None:
    """The dataset as MLflow's pages show it, and its codec as a tag."""
    columns = {}
    for field in latents(manifest.latent_channels, manifest.segment_frames):
        shape = getattr(field.type, "shape", None)
        columns[field.name] = str(field.type) if shape is None else f"{field.type.value_type} [{' × '.join(map(str, shape))}]"
    counts = manifest.counts
    profile = {
        "hours": manifest.duration_h,
        "songs": counts.songs, "train_songs": counts.train_songs, "validation_songs": counts.validation_songs,
        "segments": counts.segments, "train_segments": counts.train_segments, "validation_segments": counts.validation_segments,
        "rejected_songs": counts.rejected_songs, "rejected_segments": counts.rejected_segments,
    }  # fmt: skip
    tracker.dataset(name=dataset_name(data), digest=manifest.digest, uri=data.uri, columns=columns, profile=profile)
    tracker.tags({"backline.codec": f"{manifest.codec_id} {manifest.codec_weights_sha256[:12]}"})


def log_result(config: TrainConfig, tracker: Tracker, data: Place, run: Place, settings: Settings) -> None:
    """At the end: the losses, the best checkpoint with its card and its sound, and its version in the registry."""
    history = read_metrics(run)
    tracker.content(figures.loss_curve(loss_of(history, "train/loss"), loss_of(history, "validation/loss")), "figures/loss.png")
    best = load_checkpoint(localise(run / "best", settings.cache))
    Listener(config, tracker, data, run).play(best, best.step)
    credits = stored_credits(run)
    text = card(About(name=best.name), best, json.loads((run / "last" / STATE_JSON).read_bytes()), credits=credits)
    with TemporaryDirectory() as temporary:  # best/ may hold more than is meant
        folder = Path(temporary) / ARTIFACT
        save_checkpoint(folder, best)
        (folder / "README.md").write_text(text)
        write_credits(Place(str(folder)), credits)
        tracker.folder(folder, ARTIFACT)
    tracker.tags({NOTE_TAG: text})
    if config.register is not None:
        tracker.register(candidate_of(config, config.register, best, text, settings))


def candidate_of(config: TrainConfig, model: str, best: Checkpoint, text: str, settings: Settings) -> Candidate:
    # Two losses are of one kind when these agree; a student's are not its teacher's.
    names = ("loss", "distillation", "crop_frames", "validation_segments", "validation_timesteps", "precision")
    measure = json.dumps({name: value for name, value in config.to_dict().items() if name in names}, sort_keys=True)
    return Candidate(
        model=model,
        folder=ARTIFACT,
        name=best.name,
        step=best.step,
        validation_loss=best.metrics.get("validation/loss"),
        dataset_digest=best.dataset.digest,
        codec=f"{best.codec.id} {best.codec.weights_sha256[:12]}",
        measure=hashlib.sha256(measure.encode()).hexdigest()[:12],
        description=text,
        registry_uri=settings.mlflow_registry_uri,
    )


def track_again(place: str) -> int:
    """Sends what waits at a run's place, and any metric that its run lacks; how many entries the server refuses.

    Raises: UserError where there is no run, or its server does not answer.
    """
    run = Place(place)
    handle = read_handle(run)
    if handle is None and not (run / UNTRACKED).list():
        raise UserError(f"{run} has no {RUN_FILE} and nothing in {UNTRACKED}/: give the place that train or evaluate wrote to")
    left = send_untracked(run)
    handle = read_handle(run)
    if handle is not None and read_metrics(run):
        tracker = Tracker(handle, run)
        replay(tracker, run)
        left += tracker.close()
    return left


def loss_of(history: list[dict[str, float]], name: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), row[name]) for row in history if name in row]
