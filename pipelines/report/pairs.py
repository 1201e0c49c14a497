"""Pairs of a dataset to listen to: drawn by a named random stream, decoded by the dataset's codec, with a picture of each stem.

Shapes: B stems (vocal, accompaniment), C channels, N samples, T frames.
"""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra.audio import files as audio_files
from infra.dataset.format import Manifest
from infra.dataset.splits import tensor_column
from infra.plots import LOWEST_DB, spectrogram
from infra.storage.place import Place
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.chance import Chance
from pipelines.report.sample import STEMS, by_file, song_batches

if TYPE_CHECKING:
    from model.codec.base import Codec

SOUNDS = (*STEMS, "mix")
LOWEST_HZ, HIGHEST_HZ, PICTURE_ROWS = 50, 16_000, 200
TICKS_HZ = (100, 300, 1_000, 3_000, 10_000)
# Reads on a white page and on a dark one.
GREY = "#7a7a7a"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One segment to listen to."""

    name: str
    song_id: str
    segment: int
    split: str
    title: str
    artist: str
    license: str
    source: str
    url: str
    start_s: float
    duration_s: float
    vocal_active: float
    separation_quality: float | None
    gain_db: float
    """What brought the segment's mixture to a peak of 0 dBFS before it was encoded. It is not undone: songs play as loud as each other."""
    attenuation_db: float = 0.0
    """What keeps the decoded stems and their sum within full scale, the same on all three."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnPair:
    """A pair with its latents, (B, C, T) float32, without the frames that pad the segment."""

    pair: Pair
    latent_BCT: NDArray[np.float32]


def draw(held: Sequence[Mapping[str, Any]], digest: str, pairs: int) -> list[tuple[str, int]]:
    """(song id, how many of its segments come before it) of `pairs` segments, half from each split as far as there are so many.

    `held` are a snapshot's rows. Other songs come before another segment of the same. The same dataset gives the same pairs.
    """
    by_split: dict[str, list[Mapping[str, Any]]] = {"train": [], "validation": []}
    for row in sorted(held, key=lambda row: str(row["song_id"])):
        by_split[row["split"]].append(row)
    most = {split: sum(row["segments"] for row in rows) for split, rows in by_split.items()}
    validation = min(most["validation"], max(pairs // 2, pairs - most["train"]))
    wanted = {"train": min(most["train"], pairs - validation), "validation": validation}
    return [found for split, rows in by_split.items() for found in _draw(rows, Chance("dataset report", digest, split), wanted[split])]


def _draw(rows: Sequence[Mapping[str, Any]], chance: Chance, pairs: int) -> list[tuple[str, int]]:
    shuffled = sorted(rows, key=lambda _: chance.uniform())[:pairs]
    candidates = [
        (turn, place, row["song_id"], position)
        for place, row in enumerate(shuffled)
        for turn, position in enumerate(sorted(range(row["segments"]), key=lambda _: chance.uniform()))
    ]
    return [(song_id, position) for _, _, song_id, position in sorted(candidates)[:pairs]]


def read_pairs(
    data: Place, manifest: Manifest, held: Sequence[Mapping[str, Any]], songs: Mapping[str, Mapping[str, Any]], pairs: int
) -> list[DrawnPair]:
    """The drawn pairs with what is known of their songs (rows of songs/ by id); raises what `song_batches` does."""
    drawn = draw(held, manifest.digest, pairs)
    wanted = {song_id for song_id, _ in drawn}
    before: dict[str, int] = defaultdict(int)
    found: dict[tuple[str, int], DrawnPair] = {}
    for table in song_batches(data, by_file(row for row in held if row["song_id"] in wanted), manifest):
        latents_BRCT = np.stack([tensor_column(table, f"{stem}_latent") for stem in STEMS])
        plain = table.drop_columns([f"{stem}_latent" for stem in STEMS]).to_pylist()
        for index, row in enumerate(plain):
            here = row["song_id"], before[row["song_id"]]
            before[row["song_id"]] += 1
            if here in drawn:
                name = f"pair-{drawn.index(here) + 1:02d}"
                latent_BCT = latents_BRCT[:, index, :, : row["valid_frames"]].astype(np.float32)
                found[here] = DrawnPair(pair=_pair(name, row, songs[row["song_id"]]), latent_BCT=latent_BCT)
    return [found[here] for here in drawn if here in found]


def _pair(name: str, row: Mapping[str, Any], song: Mapping[str, Any]) -> Pair:
    texts: dict[str, Any] = {column: str(song[column] or "") for column in ("title", "artist", "license", "source", "url", "split")}
    figures: dict[str, Any] = {column: row[column] for column in ("start_s", "duration_s", "vocal_active", "separation_quality", "gain_db")}
    return Pair(name=name, song_id=row["song_id"], segment=row["segment"], **texts, **figures)


def write_sounds(out: Place, drawn: DrawnPair, codec: "Codec") -> Pair:
    """Vocal, accompaniment and mix as NAME-SOUND.ogg, and NAME-STEM.png; the pair with the attenuation that it took."""
    import torch

    decoded_BCN = codec.decode(torch.from_numpy(drawn.latent_BCT)).numpy()
    # The codec works in whole frames: the last is padded.
    stems_BCN = decoded_BCN[..., : min(decoded_BCN.shape[2], round(drawn.pair.duration_s * SAMPLE_RATE_HZ))]
    sounds_BCN = np.concatenate([stems_BCN, stems_BCN.sum(axis=0, keepdims=True)])
    peak = max(1.0, float(np.abs(sounds_BCN).max()))
    for name, sound_CN in zip(SOUNDS, sounds_BCN / peak, strict=True):
        (out / f"{drawn.pair.name}-{name}.ogg").write_bytes(audio_files.encode(sound_CN, "ogg"))
    for name, stem_CN in zip(STEMS, stems_BCN, strict=True):
        (out / f"{drawn.pair.name}-{name}.png").write_bytes(picture(stem_CN, drawn.pair.start_s))
    return replace(drawn.pair, attenuation_db=20 * float(np.log10(peak)))


def picture(stem_CN: NDArray[np.float32], start_s: float = 0.0) -> bytes:
    """A PNG: spectrogram from 50 Hz to 16 kHz, logarithmic, over the seconds of the song."""
    from matplotlib.figure import Figure  # half a second: only when sounds are written

    decibels, bins_hz, _ = spectrogram(stem_CN.mean(axis=0), SAMPLE_RATE_HZ)
    rows_hz = np.geomspace(LOWEST_HZ, HIGHEST_HZ, PICTURE_ROWS)
    nearest = np.rint(rows_hz / bins_hz[1]).astype(int)
    figure = Figure(figsize=(5.6, 2.1), layout="constrained")
    axes = figure.subplots()
    extent = (start_s, start_s + stem_CN.shape[1] / SAMPLE_RATE_HZ, 0, PICTURE_ROWS)
    axes.imshow(decibels[nearest], origin="lower", aspect="auto", extent=extent, vmin=LOWEST_DB, vmax=-10, cmap="magma")
    at = np.interp(np.log(TICKS_HZ), np.log(rows_hz), np.arange(PICTURE_ROWS) + 0.5)
    axes.set_yticks(at, [f"{hz // 1000}k" if hz >= 1000 else str(hz) for hz in TICKS_HZ])
    axes.tick_params(colors=GREY, labelsize=9)
    axes.set_xlabel("seconds of the song", color=GREY, fontsize=9)
    axes.set_ylabel("Hz", color=GREY, fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, transparent=True, metadata={"Software": None})
    return buffer.getvalue()
