"""`evaluate`: how well generated accompaniments fit held-out vocals, with the rows beside them that say what a figure means.

A latent dataset keeps no audio: vocals and real accompaniments are decoded from their latents, so that every row went through the
codec once. Rows that game a metric (a copy of the vocal) are there to be seen. Reasons: infra/decisions/0015-evaluation.md.

Shapes: C channels, N samples, T frames.
"""

import itertools
import logging
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from infra.audio import files as audio_files
from infra.dataset.format import LatentTable, read_latents, read_manifest
from infra.errors import UserError
from infra.resolve import checkpoint_place, codec_spec
from infra.settings import Settings
from infra.storage.place import Place, localise
from infra.tracking.tracking import RunHandle, Tracker, open_run, read_handle, store_of
from model.accompany import Accompanist, GenerationConfig
from model.checkpoint import Checkpoint, load_checkpoint
from model.codec.base import Codec
from model.codec.load import load_codec
from model.dimensions import SAMPLE_RATE_HZ
from model.inference.gain import mix, within_full_scale
from model.metrics.aesthetics import Aesthetics, AestheticsUnavailable, load_aesthetics
from model.metrics.embedding import Embedding
from model.metrics.embeddings import load_embedding
from model.network.unet import count_parameters
from training.evaluation import plots as figures
from training.evaluation.markdown import SEGMENT_S, markdown
from training.evaluation.measures import GENERATED, OTHER
from training.evaluation.report import EvaluationReport
from training.evaluation.rows import (
    HeldOut,
    baseline_rows,
    claim_rows,
    decode_pair,
    decode_row,
    reference_rows,
    round_trip,
    spread,
    strangers,
)
from training.evaluation.scoring import Clock, Scoring

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is scored, on how much, and where the result goes."""

    checkpoint: str
    """A checkpoint's or a training run's place, or models:/NAME@ALIAS of MLflow's registry."""
    data: str
    """The latent dataset whose validation split is played to the network."""
    out: str
    """Folder or S3 URI for evaluation.json, evaluation.md and audio/."""
    samples: int = 8
    """Held-out segments, spread over the songs."""
    seconds: float = 24.0
    """Length of each, from the segment's start; 0 = all of it."""
    audio_files: int = 3
    """Segments whose vocal, real and generated accompaniment are written as audio."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    codec: str | None = None
    """Codec, when the checkpoint's codec id does not name it."""
    embedding: str = "smoke"
    """Of the distances: smoke (weight-free), codec (its latents), clap, a CLAP folder or hub name, or auto (clap where it can be had)."""
    reference: int = 32
    """Real accompaniments of the training split that distances are taken from, as long as the others; 0 = no distances."""
    baselines: bool = True
    """Score beside real and another song's accompaniments what cheats, what is no music, and what the codec costs."""
    aesthetics: Literal["auto", "on", "off"] = "auto"
    """AudioBox-Aesthetics: auto = where its package and weights are there."""
    aesthetics_weights: str | None = None
    """Its checkpoint.pt or folder; by default the hub's."""
    experiment: str = "backline"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, below 1: give the number of held-out segments to score")
        if self.audio_files < 0:
            raise ValueError(f"audio_files is {self.audio_files}, below 0: give 0 or more")
        if self.seconds and self.seconds < 4:
            raise ValueError(f"seconds is {self.seconds}, too short to hear a fit: give 4 or more, or 0 for whole segments")
        if self.reference < 0:
            raise ValueError(f"reference is {self.reference}, below 0: give the number of training segments, or 0 for no distances")
        if not self.embedding.strip():
            raise ValueError("embedding is empty: give smoke, codec, clap, auto, or a CLAP model's folder or hub name")


def evaluate(config: EvaluateConfig, *, called: str = "evaluation") -> EvaluationReport:
    """Scores a checkpoint on held-out segments, beside its baselines; writes the tables and some audio, and logs all to MLflow.

    called: under which name in the run, of which one may have several.

    Raises: UserError or ModelError when checkpoint, dataset and codec do not belong together, nothing is held out, or what was asked for
    cannot be had.
    """
    settings, clock = Settings.from_environment(), Clock()
    place, data, out = checkpoint_place(config.checkpoint, settings), Place(config.data), Place(config.out)
    with clock("load"):
        checkpoint = load_checkpoint(localise(best_of(place), settings.cache))
        check_codec(checkpoint, data)
        store = read_latents(data, "validation")
        chosen = spread(store, config.samples)
        codec = load_codec(codec_spec(config.codec, settings) or checkpoint.codec.id, device=device())
        accompanist = Accompanist(checkpoint, codec, device=device())
        embedding = load_embedding(config.embedding, codec=codec, device=device()) if config.reference else None
        scorer, aesthetics_note = scorer_of(config)
    if len(chosen) < config.samples:
        log.warning(
            "%d segments asked for, %d are held out: prepare with a larger --validation-share for more", config.samples, len(chosen)
        )
    others = strangers(store, chosen, data)
    pairs, generated = [], []
    made_s = 0.0
    for row in tqdm(chosen, desc="generate", unit="segment", disable=None):
        with clock("decode"):
            pairs.append(decode_pair(store, row, codec, config.seconds))
        with clock("generate"):
            generation = replace(config.generation, seed=pairs[-1].seed(config.generation.seed))
            made = accompanist.accompany(pairs[-1].vocal_CN, generation)
        generated.append(made.audio_CN)
        made_s += sum(made.stage_s[stage] for stage in ("encode", "diffuse", "render"))
        log.info("%d of %d: %s, %.1f s", len(pairs), len(chosen), pairs[-1].name, pairs[-1].vocal_CN.shape[1] / SAMPLE_RATE_HZ)
    scoring = Scoring(embedding, scorer, clock)
    for index, (other_store, other_row) in enumerate(tqdm(others, desc="score", unit="segment", disable=None)):
        with clock("decode"):
            known = other_store is store and other_row in chosen
            other_CN = pairs[chosen.index(other_row)].real_CN if known else decode_row(other_store, other_row, codec, config.seconds)[1]
        rows = claim_rows(pairs, generated, index, other_CN)
        if config.baselines:
            with clock("round trip"):
                rows = itertools.chain(rows, baseline_rows(pairs, generated, index, round_trip(pairs[index].real_CN, codec)))
        scoring.add(pairs[index], rows)
    measured = scoring.measures
    distances = None
    if embedding is not None:
        borrowed = {other_store.song_ids[row] for other_store, row in others}
        with clock("reference"):
            reference = embedded_reference(data, config, codec, embedding, borrowed)
        with clock("distances"):
            distances = scoring.distances(*reference)
    audio_s = sum(pair.vocal_CN.shape[1] for pair in pairs) / SAMPLE_RATE_HZ
    report = EvaluationReport(
        rows=scoring.rows(),
        songs=len(set(scoring.song_ids)),
        seconds=max(pair.vocal_CN.shape[1] for pair in pairs) / SAMPLE_RATE_HZ,
        checkpoint=place.uri,
        model=checkpoint.name,
        step=checkpoint.step,
        dataset=data.uri,
        out=out.uri,
        wins=float(np.mean([a.overall > b.overall for a, b in zip(measured[GENERATED], measured[OTHER], strict=True)])),
        advantage=scoring.advantage(GENERATED, OTHER),
        segments=scoring.segments(),
        distances=distances,
        aesthetics=scoring.aesthetics(),
        aesthetics_note=aesthetics_note,
        parameters=count_parameters(checkpoint.build("cpu")),
        segment_s=made_s / audio_s * SEGMENT_S,
        device=device_name(),
        stage_s=dict(clock.stage_s),
    )
    log.info("seconds: %s", ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in clock.stage_s.items()))
    files = write(report, out, pairs[: config.audio_files], generated)
    track(config, called, report, checkpoint, run_handle(place), data, out, settings, files)
    return report


def scorer_of(config: EvaluateConfig) -> tuple[Aesthetics | None, str]:
    """AudioBox-Aesthetics, or why there is none. Raises AestheticsUnavailable where it was asked for."""
    if config.aesthetics == "off":
        return None, ""
    try:
        return load_aesthetics(config.aesthetics_weights, device=device()), f"Weights: {config.aesthetics_weights or 'the hub'}."
    except AestheticsUnavailable as error:
        if config.aesthetics == "on":
            raise
        return None, f"Not scored: {error}."


def embedded_reference(
    data: Place, config: EvaluateConfig, codec: Codec, embedding: Embedding, borrowed: set[str]
) -> tuple[list[np.ndarray], list[str]]:
    """Windows (R, D) of real accompaniments that no row plays, and their songs."""
    training: LatentTable = read_latents(data, "train")
    rows = reference_rows(training, config.reference, borrowed)
    pieces = [
        embedding.embed(decode_row(training, row, codec, config.seconds, vocal=False)[0])
        for row in tqdm(rows, desc="reference", unit="segment", disable=None)
    ]
    return pieces, [training.song_ids[row] for row in rows]


def sounds_of(pair: HeldOut, generated_CN: np.ndarray) -> dict[str, np.ndarray]:
    """What is written of a pair, none of it above full scale."""
    alone = {"vocal": pair.vocal_CN, "real": pair.real_CN, "generated": generated_CN}
    return {name: within_full_scale(audio_CN) for name, audio_CN in alone.items()} | {"mix": mix(pair.vocal_CN, generated_CN)[2]}


def write(report: EvaluationReport, out: Place, pairs: list[HeldOut], generated: list[np.ndarray]) -> dict[str, bytes]:
    """Writes tables, audio and pictures, and returns them by their names below `out`."""
    files = {"evaluation.json": report.to_json().encode(), "evaluation.md": markdown(report).encode()}
    for pair, generated_CN in zip(pairs, generated, strict=False):
        sounds = sounds_of(pair, generated_CN)
        files |= {f"audio/{pair.name}-{name}.wav": audio_files.encode(audio_CN, "wav") for name, audio_CN in sounds.items()}
        files[f"{pair.name}.png"] = figures.spectrograms(sounds)
    for name, content in files.items():
        (out / name).write_bytes(content)
    return files


def track(
    config: EvaluateConfig, called: str, report: EvaluationReport, checkpoint: Checkpoint, handle: RunHandle | None, data: Place,
    out: Place, settings: Settings, files: dict[str, bytes],
) -> None:  # fmt: skip
    """Adds all figures and what was written to the training's run, or to a run of its own."""
    if handle is not None and handle.run_id is None and not handle.key:  # of a time when a server that was away left nothing to find
        handle = None
    if handle is None:
        store = store_of(out, settings.mlflow_tracking_uri)
        tracker = open_run(store, experiment=config.experiment, name=f"evaluate {checkpoint.name}", run=out, source="backline evaluate")
        tracker.dataset(name=data.name, digest=checkpoint.dataset.digest, uri=data.uri, context="evaluation")
    else:
        tracker = Tracker(handle, out, repeats=True)
    tracker.metrics({f"{called}/{name}": value for name, value in report.metrics().items()}, report.step)
    for name, content in files.items():  # not the folder: a run of its own has its store in there
        tracker.content(content, f"{called}/{name}")
    if handle is None:
        tracker.end("FINISHED")
    else:
        tracker.close()


def best_of(place: Place) -> Place:
    """The best/ of a run's place, or the checkpoint's place itself."""
    return place / "best" if (place / "best" / "checkpoint.json").exists() else place


def run_handle(place: Place) -> RunHandle | None:
    """The MLflow run of a training, from the place of the run or of its checkpoint."""
    return read_handle(place) or read_handle(Place(place.uri.rsplit("/", 1)[0], place.access))


def check_codec(checkpoint: Checkpoint, data: Place) -> None:
    manifest = read_manifest(data)
    if (manifest.codec_id, manifest.codec_weights_sha256) != (checkpoint.codec.id, checkpoint.codec.weights_sha256):
        raise UserError(
            f"{data} holds latents of codec {manifest.codec_id} ({manifest.codec_weights_sha256[:8]}), the checkpoint was trained on "
            f"{checkpoint.codec.id} ({checkpoint.codec.weights_sha256[:8]}): evaluate it on the dataset of its own codec"
        )


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
