"""The rows that a network plays: sampled in its own and other ways, by its student, with each control given; and what each costs.

Shapes: C channels, N samples.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import psutil
import torch

from model.accompany import Accompanist, GenerationConfig
from model.controls import Beat, ChordSpan, Controls
from model.diffusion.sampling import USUAL_SAMPLING
from model.dimensions import SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from training.evaluation.measures import GENERATED, STUDENT
from training.evaluation.report import Absent, CostRow
from training.evaluation.rows import HeldOut
from training.evaluation.truth import Truth, a_fifth_away, relative

ExtraRow = Literal["ancestral", "20-steps", "best-of-4", "controls"]
CANDIDATES = 4
_SAMPLE_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Player:
    """One row: who plays it, and what is asked; None for a segment of which too little is known."""

    name: str
    accompanist: Accompanist
    ask: Callable[[Truth], GenerationConfig | None]


@dataclass(frozen=True, kw_only=True)
class Band:
    """An accompaniment that a network played, and the chords that it was given."""

    audio_CN: np.ndarray
    chords: tuple[ChordSpan, ...] | None = None


class Costs:
    """Seconds and memory by row."""

    def __init__(self) -> None:
        self._work_s: dict[str, float] = defaultdict(float)
        self._audio_s: dict[str, float] = defaultdict(float)
        self._peak_bytes: dict[str, int] = defaultdict(int)

    def play(self, player: Player, pair: HeldOut, truth: Truth) -> Band | None:
        """The player's band for a vocal, from the segment's own seed; its cost is counted."""
        asked = player.ask(truth)
        if asked is None:
            return None
        with peak_memory(player.accompanist.device) as peak:
            made = player.accompanist.accompany(pair.vocal_CN, replace(asked, seed=pair.seed(asked.seed)))
        stages = ("encode", "diffuse", "render") if asked.candidates == 1 else ("encode", "diffuse", "render", "fit")
        self._work_s[player.name] += sum(made.stage_s[stage] for stage in stages)  # of several the fit chooses
        self._audio_s[player.name] += pair.vocal_CN.shape[1] / SAMPLE_RATE_HZ
        self._peak_bytes[player.name] = max(self._peak_bytes[player.name], peak[0])
        return Band(audio_CN=made.audio_CN, chords=asked.controls.chords or None)

    def segment_s(self, name: str) -> float:
        """Seconds that a segment of 47.55 s takes at the row's rate."""
        return self._work_s[name] / self._audio_s[name] * SEGMENT_SAMPLES / SAMPLE_RATE_HZ

    def rows(self) -> tuple[CostRow, ...]:
        return tuple(
            CostRow(name=name, real_time_factor=work_s / self._audio_s[name], peak_bytes=self._peak_bytes[name])
            for name, work_s in self._work_s.items()
        )


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """[the most bytes held while it is open]: of an accelerator what torch allocated there, else what the process has in memory."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device)
        return
    process, over = psutil.Process(), threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLE_S):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch, name="peak-memory", daemon=True)
    peak[0] = process.memory_info().rss
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak[0] = max(peak[0], process.memory_info().rss)


def own_player(accompanist: Accompanist, asked: GenerationConfig) -> Player:
    return Player(name=GENERATED, accompanist=accompanist, ask=lambda _: asked)


def other_players(
    accompanist: Accompanist, student: Accompanist | None, asked: GenerationConfig, wanted: tuple[ExtraRow, ...]
) -> tuple[list[Player], list[Absent]]:
    """The rows beside *generated*, and why others are not there."""
    players: list[Player] = []
    absent: list[Absent] = []
    schedule = accompanist.schedule.steps
    ways: tuple[tuple[ExtraRow, str, GenerationConfig], ...] = (
        ("ancestral", f"{schedule} ancestral steps", replace(asked, solver="ancestral", steps=schedule)),
        ("20-steps", "20 steps", replace(asked, solver=USUAL_SAMPLING.solver, steps=USUAL_SAMPLING.steps)),
        ("best-of-4", f"best of {CANDIDATES}", replace(asked, candidates=CANDIDATES)),
    )
    usual = accompanist.checkpoint.sampling
    for row, name, way in ways:
        if way.sampling(usual) == asked.sampling(usual) and way.candidates == asked.candidates:
            absent.append(Absent(what=name, why="*generated* is sampled so"))
        elif row not in wanted:
            absent.append(Absent(what=name, why=f"not asked for (--rows {row})"))
        else:
            players.append(Player(name=name, accompanist=accompanist, ask=_always(way)))
    if student is None:
        absent.append(Absent(what=STUDENT, why="none named (--student)"))
    else:
        own = replace(asked, steps=None, guidance=None, solver=None)
        players.append(Player(name=STUDENT, accompanist=student, ask=_always(own)))
    given, missing = control_players(accompanist, asked, "controls" in wanted)
    return players + given, absent + missing


def _always(asked: GenerationConfig) -> Callable[[Truth], GenerationConfig]:
    return lambda _: asked


def control_players(accompanist: Accompanist, asked: GenerationConfig, wanted: bool) -> tuple[list[Player], list[Absent]]:
    """Rows with what was composed given beside the vocal: each control alone, all of them, and other chords than those of the song."""
    known, styles = accompanist.checkpoint.network.controls, accompanist.checkpoint.network.styles
    rows: dict[str, tuple[str, Callable[[Truth], Controls]]] = {
        "style given": ("style", lambda truth: Controls(style=truth.style if truth.style in styles else None)),
        "chords given": ("chords", lambda truth: Controls(chords=truth.chords or ())),
        "beats given": ("beats", lambda truth: Controls(beats=_grid(truth))),
        "chords a fifth away given": ("chords", lambda truth: Controls(chords=a_fifth_away(truth.chords or ()))),
        "relative chords given": ("chords", lambda truth: Controls(chords=relative(truth.chords or ()))),
    }
    if not wanted:
        return [], [Absent(what="rows with style, chords or beats given", why="not asked for (--rows controls)")]
    if not known:
        return [], [
            Absent(what="rows with style, chords or beats given", why="the checkpoint knows no controls: it follows the vocal alone")
        ]
    players, absent = [], []
    for name, (control, controls) in rows.items():
        if control in known:
            players.append(Player(name=name, accompanist=accompanist, ask=_with(asked, controls, 1)))
        else:
            absent.append(Absent(what=name, why=f"the checkpoint knows {', '.join(known)} alone"))

    def everything(truth: Truth) -> Controls:
        return Controls(
            style=truth.style if "style" in known and truth.style in styles else None,
            chords=(truth.chords or ()) if "chords" in known else (),
            beats=_grid(truth) if "beats" in known else (),
        )

    if len(known) > 1:
        players.append(Player(name="all controls given", accompanist=accompanist, ask=_with(asked, everything, len(known))))
    return players, absent


def _grid(truth: Truth) -> tuple[Beat, ...]:
    return () if truth.beats_s is None else truth.beats or ()


def _with(asked: GenerationConfig, controls: Callable[[Truth], Controls], least: int) -> Callable[[Truth], GenerationConfig | None]:
    """What is asked with the segment's controls; nothing where fewer than `least` of them are known."""

    def ask(truth: Truth) -> GenerationConfig | None:
        found = controls(truth)
        return replace(asked, controls=found) if len(found.names) >= least else None

    return ask
