"""A latent dataset that a network can learn in seconds: the accompaniment is a fixed mixing of the vocal's channels, half a beat later."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from infra.dataset.format import Counts, Manifest, latents, tensors
from infra.dataset.parquet import write_table
from infra.dataset.truth import FrameTruth, frame_columns, no_truth
from infra.storage.place import Place
from model.chords import QUALITIES

CHANNELS = 64


def write_latents(
    folder: Path,
    *,
    songs: int = 5,
    held_out: int = 1,
    segments: int = 2,
    frames: int = 64,
    codec_id: str = "tiny",
    codec_sha256: str = "c0dec" * 12,
    seed: int = 0,
    styles: tuple[str, ...] = (),
) -> str:
    """Writes manifest.json and latents/ as `prepare` does; the last segment of each song is short. Returns the place's URI.

    styles: songs have truth, their style among it, in turn; a chord of 16 frames moves each channel of its root, nothing of the vocal.
    """
    random = np.random.default_rng(seed)
    mixing_CC = random.standard_normal((CHANNELS, CHANNELS)) / np.sqrt(CHANNELS)
    place = Place(str(folder))
    levels: dict[str, list[np.ndarray]] = {"vocal": [], "accompaniment": []}
    for song in range(songs):
        split = "validation" if song < held_out else "train"
        smooth_CT = random.standard_normal((segments, CHANNELS, frames + 8)).cumsum(axis=2)
        vocal_RCT = (smooth_CT[:, :, 8:] - smooth_CT[:, :, :-8]) / 3
        accompaniment_RCT = 2 * np.einsum("dc,rct->rdt", mixing_CC, vocal_RCT) + 1
        truth = no_truth(segments, frames)
        if styles:
            truth = known_truth(random, segments, frames)
            accompaniment_RCT += 4 * (truth.chord_root_RT[:, None] == np.arange(CHANNELS)[:, None])
        valid_R = [frames] * (segments - 1) + [3 * frames // 4]
        rows = {
            "song_id": pa.array([f"song-{song:03d}"] * segments),
            "segment": pa.array(range(segments), pa.int32()),
            "start_s": pa.array([0.0] * segments),
            "duration_s": pa.array([frames / 21.5] * segments),
            "valid_frames": pa.array(valid_R, pa.int32()),
            "vocal_latent": tensors(vocal_RCT.astype(np.float16)),
            "accompaniment_latent": tensors(accompaniment_RCT.astype(np.float16)),
            "vocal_active": pa.array([1.0] * segments, pa.float32()),
            "gain_db": pa.array([0.0] * segments, pa.float32()),
            "source": pa.array(["tiny"] * segments),
            "license": pa.array(["CC0-1.0"] * segments),
            "separation_quality": pa.array([None] * segments, pa.float32()),
            **frame_columns(truth, "composed" if styles else None),
        }
        write_table(place / f"latents/split={split}/song-{song:03d}.parquet", pa.table(rows, schema=latents(CHANNELS, frames)))
        if styles:
            style = {"song_id": pa.array([f"song-{song:03d}"]), "style": pa.array([styles[song % len(styles)]])}
            write_table(place / f"songs/song-{song:03d}.parquet", pa.table(style))
        levels["vocal"].append(vocal_RCT)
        levels["accompaniment"].append(accompaniment_RCT)
    statistics = {}
    for stem, arrays in levels.items():
        table = np.concatenate(arrays).transpose(1, 0, 2).reshape(CHANNELS, -1)
        statistics[f"{stem}_mean"] = tuple(table.mean(axis=1).tolist())
        statistics[f"{stem}_std"] = tuple(table.std(axis=1).tolist())
    manifest = Manifest(
        codec_id=codec_id, codec_weights_sha256=codec_sha256, separator_id=None, sample_rate_hz=44_100, hop_samples=2_048,
        latent_channels=CHANNELS, segment_frames=frames, **statistics, vocal_level_db=-20.0, duration_h=0.01,
        counts=Counts(
            songs=songs, train_songs=songs - held_out, validation_songs=held_out, segments=songs * segments,
            train_segments=(songs - held_out) * segments, validation_segments=held_out * segments, rejected_songs=0, rejected_segments=0,
        ),
        content_sha256=f"{seed:064d}", commit="test", **({"truth_sha256": "0" * 64, "chord_qualities": QUALITIES} if styles else {}),
    )  # fmt: skip
    (place / "manifest.json").write_bytes(manifest.to_json().encode())
    return place.uri


def known_truth(random: np.random.Generator, segments: int, frames: int) -> FrameTruth:
    """A major triad of a drawn root for 16 frames each, beats of 8 frames, bars of 32."""
    roots_RT = np.repeat(random.integers(0, 12, (segments, -(-frames // 16))), 16, axis=1)[:, :frames].astype(np.int8)
    place_RT = np.tile(np.arange(frames), (segments, 1))
    sure_R = np.ones(segments, np.float32)
    return FrameTruth(
        chord_root_RT=roots_RT,
        chord_quality_RT=np.zeros_like(roots_RT),
        chord_bass_RT=roots_RT,
        beat_phase_RT=(place_RT % 8 / 8).astype(np.float16),
        bar_phase_RT=(place_RT % 32 / 32).astype(np.float16),
        chord_confidence_R=sure_R,
        beat_confidence_R=sure_R,
        bar_confidence_R=sure_R,
        known_R=sure_R > 0,
        chords_known_R=sure_R > 0,
    )
