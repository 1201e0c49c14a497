"""`evaluate`: how well generated accompaniments fit held-out vocals, with the rows beside them that say what a figure means.

A latent dataset keeps no audio: vocals and real accompaniments are decoded from their latents, so that every row went through the
codec once, and the row "real" is also the codec's round trip. Rows that game a metric (a copy of the vocal) are there to be seen.

Shapes: C channels, N samples, T frames.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from infra import audio_files
from infra.errors import UserError
from infra.places import checkpoint_place, codec_spec
from infra.records import LatentTable, read_latents, read_manifest
from infra.settings import Settings
from infra.storage import Place, localise
from infra.tracking import RunHandle, Tracker, open_run, read_handle, store_of
from model.accompany import Accompanist, GenerationConfig
from model.checkpoint import Checkpoint, load_checkpoint
from model.codec import load_codec
from model.codec_base import Codec
from model.geometry import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from model.level import mix, within_full_scale
from training import figures
from training.scores import GENERATED, OTHER, REAL, EvaluationReport, Measures, measure, summarise

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
    experiment: str = "backline"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, below 1: give the number of held-out segments to score")
        if self.audio_files < 0:
            raise ValueError(f"audio_files is {self.audio_files}, below 0: give 0 or more")
        if self.seconds and self.seconds < 4:
            raise ValueError(f"seconds is {self.seconds}, too short to hear a fit: give 4 or more, or 0 for whole segments")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One held-out pair, decoded."""

    song_id: str
    segment: int
    vocal_CN: np.ndarray
    real_CN: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.song_id}-{self.segment}"


def evaluate(config: EvaluateConfig) -> EvaluationReport:
    """Scores a checkpoint on held-out segments, beside its baselines; writes the table and some audio, and logs both to MLflow.

    Raises: UserError or ModelError when checkpoint, dataset and codec do not belong together, or nothing is held out.
    """
    settings = Settings.from_environment()
    place, data, out = checkpoint_place(config.checkpoint, settings), Place(config.data), Place(config.out)
    checkpoint = load_checkpoint(localise(best_of(place), settings.cache))
    check_codec(checkpoint, data)
    codec = load_codec(codec_spec(config.codec, settings) or checkpoint.codec.id, device=device())
    accompanist = Accompanist(checkpoint, codec, device=device())
    store = read_latents(data, "validation")
    chosen = spread(store, config.samples)
    others = strangers(store, chosen, data)
    pairs, generated = [], []
    for index, row in enumerate(chosen):
        pairs.append(decode_pair(store, row, codec, config.seconds))
        generated.append(accompanist.accompany(pairs[-1].vocal_CN, config.generation).audio_CN)
        log.info("%d of %d: %s, %.1f s", index + 1, len(chosen), pairs[-1].name, pairs[-1].vocal_CN.shape[1] / SAMPLE_RATE_HZ)
    measured: dict[str, list[Measures]] = {}
    for index, (pair, (other_store, other_row)) in enumerate(zip(pairs, others, strict=True)):
        other_CN = decode_pair(other_store, other_row, codec, config.seconds).real_CN
        for name, accompaniment_CN in rows_of(pairs, generated, index, other_CN):
            measured.setdefault(name, []).append(measure(pair.vocal_CN, pair.real_CN, accompaniment_CN))
    song_ids = [pair.song_id for pair in pairs]
    report = EvaluationReport(
        rows=tuple(summarise(name, values, song_ids) for name, values in measured.items()),
        songs=len(set(song_ids)),
        seconds=max(pair.vocal_CN.shape[1] for pair in pairs) / SAMPLE_RATE_HZ,
        checkpoint=place.uri,
        model=checkpoint.name,
        step=checkpoint.step,
        dataset=data.uri,
        out=out.uri,
        wins=float(np.mean([a.overall > b.overall for a, b in zip(measured[GENERATED], measured[OTHER], strict=True)])),
    )
    write(report, out, pairs[: config.audio_files], generated)
    track(config, report, checkpoint, run_handle(place), data, out, settings)
    return report


def rows_of(pairs: list[HeldOut], generated: list[np.ndarray], index: int, other_CN: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The kinds of accompaniment that are scored against vocal `index`."""
    real_CN = pairs[index].real_CN
    yield GENERATED, generated[index]
    yield REAL, real_CN
    yield OTHER, other_CN
    turned = [(index + shift) % len(pairs) for shift in range(1, len(pairs))]  # each vocal another stranger, not all the same
    stranger = next((other for other in turned if pairs[other].song_id != pairs[index].song_id), None)
    if stranger is not None:
        yield "generated for another song", generated[stranger]
    yield "copy of the vocal", pairs[index].vocal_CN
    yield "silence", np.zeros_like(real_CN)
    level = float(np.sqrt(np.mean(real_CN**2)))
    yield "noise", level * np.random.default_rng(index).standard_normal(real_CN.shape, dtype=np.float32)


def spread(store: LatentTable, count: int) -> list[int]:
    """Rows of the first segments of every song, then of the second ones, and so on; segments under 4 s last."""
    if not len(store):
        raise UserError("the validation split has no segments: prepare a dataset with more songs, one in ten is held out")
    seen: dict[str, int] = {}
    keys = []
    for row, song in enumerate(store.song_ids):
        seen[song] = seen.get(song, -1) + 1
        keys.append((int(store.valid_frames_R[row]) < 4 * FRAME_RATE_HZ, seen[song], row))
    return [row for _, _, row in sorted(keys)[:count]]


def strangers(store: LatentTable, chosen: list[int], data: Place) -> list[tuple[LatentTable, int]]:
    """A row of another song for each chosen one: held out where there is one, else from the training split."""
    found = []
    fallback: LatentTable | None = None
    for position, row in enumerate(chosen):
        turned = chosen[position + 1 :] + chosen[:position]
        other = next((candidate for candidate in turned if store.song_ids[candidate] != store.song_ids[row]), None)
        if other is not None:
            found.append((store, other))
            continue
        fallback = fallback or read_latents(data, "train")
        longest = np.argsort(-fallback.valid_frames_R, kind="stable")
        found.append((fallback, int(longest[position % len(longest)])))
    return found


def decode_pair(store: LatentTable, row: int, codec: Codec, seconds: float) -> HeldOut:
    """Vocal and real accompaniment of a segment, from their latents."""
    frames = int(store.valid_frames_R[row])
    if seconds:
        frames = min(frames, int(seconds * FRAME_RATE_HZ))
    latents_BCT = torch.from_numpy(np.stack([latent[row, :, :frames] for latent in (store.vocal_RCT, store.accompaniment_RCT)])).float()
    with torch.inference_mode():
        audio_BCN = codec.decode(latents_BCT.to(device())).cpu().numpy()
    return HeldOut(song_id=store.song_ids[row], segment=store.segments[row], vocal_CN=audio_BCN[0], real_CN=audio_BCN[1])


def sounds_of(pair: HeldOut, generated_CN: np.ndarray) -> dict[str, np.ndarray]:
    """What is written of a pair, none of it above full scale."""
    alone = {"vocal": pair.vocal_CN, "real": pair.real_CN, "generated": generated_CN}
    return {name: within_full_scale(audio_CN) for name, audio_CN in alone.items()} | {"mix": mix(pair.vocal_CN, generated_CN)[2]}


def write(report: EvaluationReport, out: Place, pairs: list[HeldOut], generated: list[np.ndarray]) -> None:
    (out / "evaluation.json").write_bytes(report.to_json().encode())
    (out / "evaluation.md").write_bytes(report.to_markdown().encode())
    for pair, generated_CN in zip(pairs, generated, strict=False):
        sounds = sounds_of(pair, generated_CN)
        for name, audio_CN in sounds.items():
            (out / "audio" / f"{pair.name}-{name}.wav").write_bytes(audio_files.encode(audio_CN, "wav"))
        (out / f"{pair.name}.png").write_bytes(figures.spectrograms(sounds))


def track(
    config: EvaluateConfig, report: EvaluationReport, checkpoint: Checkpoint, handle: RunHandle | None, data: Place, out: Place,
    settings: Settings,
) -> None:  # fmt: skip
    """Adds the table and the files to the training's run, or to a run of its own."""
    if handle is not None and handle.run_id is None and not handle.key:  # of a time when a server that was away left nothing to find
        handle = None
    if handle is None:
        store = store_of(out, settings.mlflow_tracking_uri)
        tracker = open_run(store, experiment=config.experiment, name=f"evaluate {checkpoint.name}", run=out, source="backline evaluate")
        tracker.dataset(name=data.name, digest=checkpoint.dataset.digest, uri=data.uri, context="evaluation")
    else:
        tracker = Tracker(handle, out, repeats=True)
    for row in report.rows:
        name = "".join(letter if letter.isalnum() else "_" for letter in row.name.replace("'s", "").replace(",", ""))
        tracker.metrics({f"evaluation/{name}/{part.name}": getattr(row.mean, part.name) for part in fields(Measures)}, report.step)
    tracker.metrics({"evaluation/wins_over_another_song": report.wins}, report.step)
    for path in sorted(localise(out, settings.cache).iterdir()):  # a store of its own lies there too
        if path.name == "audio":
            tracker.folder(path, "evaluation/audio")
        elif path.suffix in (".json", ".md", ".png"):
            tracker.file(path, "evaluation")
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
