"""How far a run is: a bar for each stage on a terminal, lines in a log; a table at its end."""

import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from pipelines.run.run_state import STAGES, StageTotal

log = logging.getLogger(__name__)

POLL_S = 1.0
LOG_EVERY_S = 30.0


@contextmanager
def shown(ledger: Any, songs: int) -> Iterator[None]:
    """Shows the ledger's totals while the block runs; `songs` is how many there are to do."""
    bars = Bars(songs) if sys.stderr.isatty() else None
    over = threading.Event()

    def follow() -> None:
        import ray

        begun, logged_s = 0.0, 0.0
        while not over.wait(POLL_S):
            begun += POLL_S
            try:
                totals: Mapping[str, StageTotal] = ray.get(ledger.read_totals.remote(), timeout=10 * POLL_S)
            except ray.exceptions.RayError:
                continue  # the display may miss a moment; what happened to the run is the run's to say
            if bars is not None:
                bars.show(totals)
            elif begun - logged_s >= LOG_EVERY_S:
                logged_s = begun
                log.info("%s", line(totals, songs, begun))

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if bars is not None:
            bars.close()


class Bars:
    """One bar a stage; a stage that has nothing to do has none."""

    def __init__(self, songs: int) -> None:
        self.songs = songs
        self.bars: dict[str, tqdm[Any]] = {}

    def show(self, totals: Mapping[str, StageTotal]) -> None:
        for position, stage in enumerate(STAGES):
            total = totals[stage]
            if not total.songs:
                continue
            if stage not in self.bars:
                self.bars[stage] = tqdm(total=self.songs, desc=f"{stage:>8}", unit="song", position=position, leave=True)
            bar = self.bars[stage]
            bar.set_postfix_str(f"{total.audio_s / 3600:.2f} h of audio", refresh=False)
            bar.update(total.songs - bar.n)

    def close(self) -> None:
        for bar in self.bars.values():
            bar.close()


def line(totals: Mapping[str, StageTotal], songs: int, elapsed_s: float) -> str:
    """All stages in a line of a log."""
    stages = ", ".join(f"{stage} {total.songs}" for stage, total in totals.items() if total.songs)
    written = totals["write"]
    rate = 3600 * written.songs / elapsed_s if elapsed_s else 0.0
    return f"{written.songs} of {songs} songs, {written.audio_s / 3600:.2f} h of audio, {rate:.0f} songs/h ({stages})"


def table(totals: Mapping[str, StageTotal], elapsed_s: float) -> list[str]:
    """Lines of the table at the end: what each stage did, how long its processes worked, and how much audio each of their hours takes."""
    lines = [f"{'stage':<10}{'songs':>8}{'audio h':>10}{'process h':>11}{'× real time':>13}{'songs/h':>10}"]
    for stage, total in totals.items():
        if total.songs:
            speed = f"{total.audio_s / total.busy_s:.0f}" if total.audio_s and total.busy_s else "–"
            rate = 3600 * total.songs / elapsed_s if elapsed_s else 0.0
            lines.append(f"{stage:<10}{total.songs:>8}{total.audio_s / 3600:>10.2f}{total.busy_s / 3600:>11.3f}{speed:>13}{rate:>10.0f}")
    return lines
