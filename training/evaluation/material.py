"""What an evaluation plays and measures with: networks, codec and embeddings, held-out pairs, and what it takes from the training split.

Shapes: C channels, N samples, R windows, D dimensions.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from infra.dataset.format import LatentTable, read_latents, read_manifest
from infra.errors import UserError
from infra.resolve import checkpoint_place, codec_spec
from infra.settings import Settings
from infra.storage.place import Place, localise
from model.accompany import Accompanist
from model.checkpoint import Checkpoint, load_checkpoint
from model.codec.base import Codec
from model.codec.load import load_codec
from model.dimensions import SAMPLE_RATE_HZ
from model.metrics.adherence import paired_and_swapped
from model.metrics.aesthetics import Aesthetics, AestheticsUnavailable, load_aesthetics
from model.metrics.embedding import Embedding
from model.metrics.embeddings import load_embedding
from training.evaluation.config import EvaluateConfig
from training.evaluation.measures import RETRIEVED
from training.evaluation.playing import Costs, own_player
from training.evaluation.report import Absent
from training.evaluation.retrieval import best_match, composed, fingerprint
from training.evaluation.rows import HeldOut, decode_pair, decode_row, reference_rows, spread
from training.evaluation.scoring import Clock, Reference
from training.evaluation.truth import NOTHING, Truth, TruthReader, composed_truths

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What an evaluation works with."""

    checkpoint: Checkpoint
    codec: Codec
    accompanist: Accompanist
    student: Accompanist | None
    embeddings: tuple[Embedding, ...]
    scorer: Aesthetics | None
    aesthetics_note: str
    store: LatentTable
    chosen: list[int]
    truths: TruthReader

    def truth(self, pair: HeldOut) -> Truth:
        """Of the pair, as long as it is."""
        return self.truths(pair.song_id, pair.segment).until(pair.vocal_CN.shape[1] / SAMPLE_RATE_HZ)


def load(config: EvaluateConfig, place: Place, data: Place, settings: Settings, truths: TruthReader | None) -> Loaded:
    """Everything that may not be there, before any work starts."""
    checkpoint = load_checkpoint(localise(best_of(place), settings.cache))
    check_codec(checkpoint, data)
    store = read_latents(data, "validation")
    chosen = spread(store, config.samples)
    if len(chosen) < config.samples:
        log.warning(
            "%d segments asked for, %d are held out: prepare with a larger --validation-share for more", config.samples, len(chosen)
        )
    codec = load_codec(codec_spec(config.codec, settings) or checkpoint.codec.id, device=device())
    student = None
    if config.student is not None:
        learned = load_checkpoint(localise(best_of(checkpoint_place(config.student, settings)), settings.cache))
        check_codec(learned, data)
        student = Accompanist(learned, codec, device=device())
    embeddings = tuple(load_embedding(name, codec=codec, device=device()) for name in config.embedding if config.reference)
    scorer, aesthetics_note = scorer_of(config)
    return Loaded(
        checkpoint=checkpoint, codec=codec, accompanist=Accompanist(checkpoint, codec, device=device()), student=student,
        embeddings=embeddings, scorer=scorer, aesthetics_note=aesthetics_note, store=store, chosen=chosen,
        truths=truths or composed_truths(data, store),
    )  # fmt: skip


def play_all(config: EvaluateConfig, loaded: Loaded, costs: Costs, clock: Clock) -> tuple[list[HeldOut], list[np.ndarray]]:
    """The held-out pairs, and the band that the checkpoint plays for each."""
    pairs: list[HeldOut] = []
    generated: list[np.ndarray] = []
    player = own_player(loaded.accompanist, config.generation)
    for row in tqdm(loaded.chosen, desc="generate", unit="segment", disable=None):
        with clock("decode"):
            pair = decode_pair(loaded.store, row, loaded.codec, config.seconds)
        with clock("generate"):
            band = costs.play(player, pair, NOTHING)
        assert band is not None  # nothing need be known for it
        pairs.append(pair)
        generated.append(band.audio_CN)
        log.info("%d of %d: %s, %.1f s", len(pairs), len(loaded.chosen), pair.name, pair.vocal_CN.shape[1] / SAMPLE_RATE_HZ)
    return pairs, generated


@dataclass(frozen=True, kw_only=True)
class Found:
    """A band of the training split, decoded when it is played."""

    song_id: str
    decode: Callable[[], np.ndarray]


def retrieve(
    config: EvaluateConfig, loaded: Loaded, data: Place, pairs: list[HeldOut], borrowed: set[str]
) -> tuple[list[Found], list[Absent]]:
    """The best match of the training split for each pair, or why there is none."""
    if not config.retrieval:
        return [], [Absent(what=RETRIEVED, why="not asked for (--retrieval)")]
    training = read_latents(data, "train")
    rows = reference_rows(training, config.retrieval, borrowed)

    def decode(row: int) -> np.ndarray:
        return np.asarray(decode_row(training, row, loaded.codec, config.seconds, vocal=False)[0])

    candidates = []
    for row in tqdm(rows, desc="retrieve", unit="segment", disable=None):
        truth = loaded.truths(training.song_ids[row], training.segments[row])
        candidates.append(composed(truth) or fingerprint(decode(row), truth))
    found = []
    for pair in pairs:
        row = rows[best_match(fingerprint(pair.vocal_CN, loaded.truth(pair)), candidates)]
        found.append(Found(song_id=training.song_ids[row], decode=functools.partial(decode, row)))
    return found, []


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


def embedded_references(data: Place, config: EvaluateConfig, loaded: Loaded, borrowed: set[str]) -> list[Reference]:
    """In each embedding, windows of real accompaniments that no row plays, and of their mixes."""
    training: LatentTable = read_latents(data, "train")
    rows = reference_rows(training, config.reference, borrowed)
    references = [Reference(bands=[], song_ids=[], paired=[], swapped=[]) for _ in loaded.embeddings]

    def pairs() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for row in tqdm(rows, desc="reference", unit="segment", disable=None):
            stems = decode_row(training, row, loaded.codec, config.seconds, vocal=config.apa)
            for embedding, reference in zip(loaded.embeddings, references, strict=True):
                reference.bands.append(embedding.embed(stems[-1]))
                reference.song_ids.append(training.song_ids[row])
            yield training.song_ids[row], stems[0], stems[-1]

    if not config.apa:
        for _ in pairs():
            pass
        return references
    for matched, _, mix_CN in paired_and_swapped(pairs()):
        for embedding, reference in zip(loaded.embeddings, references, strict=True):
            (reference.paired if matched else reference.swapped).append(embedding.embed(mix_CN))
    return references


def best_of(place: Place) -> Place:
    """The best/ of a run's place, or the checkpoint's place itself."""
    return place / "best" if (place / "best" / "checkpoint.json").exists() else place


def check_codec(checkpoint: Checkpoint, data: Place) -> None:
    manifest = read_manifest(data)
    if (manifest.codec_id, manifest.codec_weights_sha256) != (checkpoint.codec.id, checkpoint.codec.weights_sha256):
        raise UserError(
            f"{data} holds latents of codec {manifest.codec_id} ({manifest.codec_weights_sha256[:8]}), the checkpoint was trained on "
            f"{checkpoint.codec.id} ({checkpoint.codec.weights_sha256[:8]}): evaluate it on the dataset of its own codec"
        )


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
