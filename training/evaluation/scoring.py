"""Scores accompaniments as they come, row by row, and sums them up: fit and what the band follows in threads, the rest beside them."""

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from model.metrics.adherence import Adherence, mixed
from model.metrics.aesthetics import AXES, Aesthetics, AestheticScores
from model.metrics.embedding import Embedding
from model.metrics.fit import Listener
from model.metrics.set_distances import (
    EmbeddedSet,
    FrechetDistance,
    Interval,
    KernelDistance,
    extrapolated,
    frechet_with_interval,
    kernel_with_interval,
)
from training.evaluation.following import Expected, Following, FollowingRow, following_row
from training.evaluation.measures import GENERATED, OTHER, EvaluationRow, Measures, advantage, means_over_songs, measure, summarise
from training.evaluation.playing import Band
from training.evaluation.report import AestheticsRow, DistanceRow, Distances, SegmentFit
from training.evaluation.rows import HeldOut
from training.evaluation.truth import NOTHING, Truth


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.stage_s: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began_s = time.perf_counter()
        yield
        self.stage_s[stage] += time.perf_counter() - began_s


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Windows (R, D) in one embedding of the training split's real accompaniments and of their mixes, with the songs of each."""

    bands: list[np.ndarray]
    song_ids: list[str]
    paired: list[np.ndarray]
    """Of the mixes of true pairs; empty where adherence is not measured."""
    swapped: list[np.ndarray]
    """Of the same vocals with other songs' bands."""


class Scoring:
    """Everything that is measured of the rows, segment after segment."""

    def __init__(self, embeddings: Sequence[Embedding], scorer: Aesthetics | None, clock: Clock, *, adherence: bool = False) -> None:
        self.measures: dict[str, list[Measures]] = defaultdict(list)
        self.song_ids: list[str] = []
        self._songs: dict[str, list[str]] = defaultdict(list)
        self._embeddings, self._scorer, self._clock, self._adherence = embeddings, scorer, clock, adherence
        self._windows: list[dict[str, list[np.ndarray]]] = [defaultdict(list) for _ in embeddings]
        self._mixes: list[dict[str, list[np.ndarray]]] = [defaultdict(list) for _ in embeddings]
        self._scores: dict[str, list[AestheticScores]] = defaultdict(list)
        self._following: dict[str, list[Following]] = defaultdict(list)

    def add(self, pair: HeldOut, accompaniments: Iterable[tuple[str, Band]], truth: Truth = NOTHING) -> None:
        """Scores one segment's accompaniments. Fit spends its time in numpy, which lets other threads run."""
        self.song_ids.append(pair.song_id)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            listener, expected = Listener(pair.vocal_CN), Expected(pair.vocal_CN, pair.real_CN, truth)
            measured = {}
            for name, band in accompaniments:
                self._songs[name].append(pair.song_id)
                measured[name] = (
                    pool.submit(measure, pair.vocal_CN, pair.real_CN, band.audio_CN, listener),
                    pool.submit(expected.of, band.audio_CN, band.chords),
                )
                self._embed(pair, name, band.audio_CN)
                if self._scorer is not None:
                    with self._clock("aesthetics"):
                        self._scores[name].append(self._scorer.score(band.audio_CN))
            with self._clock("fit and sound, after the rest"):
                for name, (fitting, following) in measured.items():
                    self.measures[name].append(fitting.result())
                    self._following[name].append(following.result())

    def _embed(self, pair: HeldOut, name: str, audio_CN: np.ndarray) -> None:
        with self._clock("embed"):
            for embedding, windows in zip(self._embeddings, self._windows, strict=True):
                windows[name].append(embedding.embed(audio_CN))
            if self._adherence and self._embeddings:
                mix_CN = mixed(pair.vocal_CN, audio_CN)
                for embedding, mixes in zip(self._embeddings, self._mixes, strict=True):
                    mixes[name].append(embedding.embed(mix_CN))

    def rows(self) -> tuple[EvaluationRow, ...]:
        return tuple(summarise(name, values, self._songs[name]) for name, values in self.measures.items())

    def following(self) -> tuple[FollowingRow, ...]:
        return tuple(following_row(name, found, self._songs[name]) for name, found in self._following.items())

    def segments(self) -> tuple[SegmentFit, ...]:
        return tuple(
            SegmentFit(song_id=song_id, overall=made.overall, another_song=other.overall)
            for song_id, made, other in zip(self.song_ids, self.measures[GENERATED], self.measures[OTHER], strict=True)
        )

    def advantage(self, one: str, other: str) -> Interval:
        return advantage(self.measures[one], self.measures[other], self.song_ids)

    def distances(self, references: Sequence[Reference]) -> tuple[Distances, ...]:
        """The rows' distances in each embedding from its reference."""
        return tuple(self._distances(number, reference) for number, reference in enumerate(references))

    def _distances(self, number: int, given: Reference) -> Distances:
        embedding, reference = self._embeddings[number], EmbeddedSet.of(given.bands, given.song_ids)
        frechet, kernel = FrechetDistance(reference.windows_RD), KernelDistance(reference)
        adherence = Adherence(np.concatenate(given.paired), np.concatenate(given.swapped)) if given.swapped else None
        rows = []
        for name, windows in self._windows[number].items():
            if len(windows) < len(self.song_ids) and sum(map(len, windows)) < 2:
                continue  # a row of the one segment whose truth is known, which is a set of one window
            sample = EmbeddedSet.of(windows, self._songs[name])
            adhered = None if adherence is None else adherence.with_interval(EmbeddedSet.of(self._mixes[number][name], self._songs[name]))
            rows.append(
                DistanceRow(
                    name=name,
                    windows=len(sample.windows_RD),
                    frechet=frechet_with_interval(frechet, sample),
                    frechet_extrapolated=extrapolated(frechet, sample),
                    kernel=kernel_with_interval(kernel, sample),
                    apa=adhered,
                )
            )
        return Distances(
            embedding=embedding.name,
            note=embedding.note,
            dimension=embedding.dimension,
            window_s=embedding.window_s,
            reference_songs=reference.songs,
            reference_windows=len(reference.windows_RD),
            rows=tuple(rows),
            reference_mixes=sum(map(len, given.paired)),
        )

    def aesthetics(self) -> tuple[AestheticsRow, ...]:
        rows = []
        for name, scores in self._scores.items():
            table_RM = np.array([[getattr(score, axis) for axis in AXES] for score in scores])
            ends = zip(*means_over_songs(table_RM, self._songs[name]), strict=True)
            intervals = [Interval(value=float(value), low=float(low), high=float(high)) for value, low, high in ends]
            rows.append(AestheticsRow(name=name, **dict(zip(AXES, intervals, strict=True))))
        return tuple(rows)
