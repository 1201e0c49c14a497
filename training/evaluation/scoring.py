"""Scores accompaniments as they come, row by row, and sums them up: fit and sound in threads, embedding and aesthetics beside them."""

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

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
from training.evaluation.measures import GENERATED, OTHER, EvaluationRow, Measures, advantage, means_over_songs, measure, summarise
from training.evaluation.report import AestheticsRow, DistanceRow, Distances, SegmentFit
from training.evaluation.rows import HeldOut


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.stage_s: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began_s = time.perf_counter()
        yield
        self.stage_s[stage] += time.perf_counter() - began_s


class Scoring:
    """Everything that is measured of the rows, segment after segment."""

    def __init__(self, embedding: Embedding | None, scorer: Aesthetics | None, clock: Clock) -> None:
        self.measures: dict[str, list[Measures]] = defaultdict(list)
        self.song_ids: list[str] = []
        self._embedding, self._scorer, self._clock = embedding, scorer, clock
        self._windows: dict[str, list[np.ndarray]] = defaultdict(list)
        self._scores: dict[str, list[AestheticScores]] = defaultdict(list)

    def add(self, pair: HeldOut, accompaniments: Iterable[tuple[str, np.ndarray]]) -> None:
        """Scores one segment's accompaniments. Fit spends its time in numpy, which lets other threads run."""
        self.song_ids.append(pair.song_id)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            listener = Listener(pair.vocal_CN)
            measured = {}
            for name, audio_CN in accompaniments:
                measured[name] = pool.submit(measure, pair.vocal_CN, pair.real_CN, audio_CN, listener)
                if self._embedding is not None:
                    with self._clock("embed"):
                        self._windows[name].append(self._embedding.embed(audio_CN))
                if self._scorer is not None:
                    with self._clock("aesthetics"):
                        self._scores[name].append(self._scorer.score(audio_CN))
            with self._clock("fit and sound, after the rest"):
                for name, future in measured.items():
                    self.measures[name].append(future.result())

    def rows(self) -> tuple[EvaluationRow, ...]:
        return tuple(summarise(name, values, self.song_ids) for name, values in self.measures.items())

    def segments(self) -> tuple[SegmentFit, ...]:
        return tuple(
            SegmentFit(song_id=song_id, overall=made.overall, another_song=other.overall)
            for song_id, made, other in zip(self.song_ids, self.measures[GENERATED], self.measures[OTHER], strict=True)
        )

    def advantage(self, one: str, other: str) -> Interval:
        return advantage(self.measures[one], self.measures[other], self.song_ids)

    def distances(self, pieces: list[np.ndarray], song_ids: list[str]) -> Distances:
        """The rows' distances from the reference, given as the windows (R, D) and the song of each of its segments; with an embedding."""
        assert self._embedding is not None
        reference = EmbeddedSet.of(pieces, song_ids)
        frechet, kernel = FrechetDistance(reference.windows_RD), KernelDistance(reference)
        rows = []
        for name, windows in self._windows.items():
            sample = EmbeddedSet.of(windows, self.song_ids)
            rows.append(
                DistanceRow(
                    name=name,
                    windows=len(sample.windows_RD),
                    frechet=frechet_with_interval(frechet, sample),
                    frechet_extrapolated=extrapolated(frechet, sample),
                    kernel=kernel_with_interval(kernel, sample),
                )
            )
        return Distances(
            embedding=self._embedding.name,
            note=self._embedding.note,
            dimension=self._embedding.dimension,
            window_s=self._embedding.window_s,
            reference_songs=reference.songs,
            reference_windows=len(reference.windows_RD),
            rows=tuple(rows),
        )

    def aesthetics(self) -> tuple[AestheticsRow, ...]:
        rows = []
        for name, scores in self._scores.items():
            table_RM = np.array([[getattr(score, axis) for axis in AXES] for score in scores])
            ends = zip(*means_over_songs(table_RM, self.song_ids), strict=True)
            intervals = [Interval(value=float(value), low=float(low), high=float(high)) for value, low, high in ends]
            rows.append(AestheticsRow(name=name, **dict(zip(AXES, intervals, strict=True))))
        return tuple(rows)
