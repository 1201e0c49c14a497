"""Small examples of audio files and of each kind of source, in the layout that users have on disk; real audio of a second or two."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from infra.audio.files import encode

RATE_HZ = 44_100


def bursts(seed: int, duration_s: float = 2.0, rate_hz: int = RATE_HZ, channels: int = 2) -> np.ndarray:
    """(C, N) a tone whose loudness changes every 50 ms at random: its place in time can be found again to the sample."""
    rng = np.random.default_rng(seed)
    samples = round(duration_s * rate_hz)
    envelope_N = np.interp(np.arange(samples), np.arange(0, samples, rate_hz // 20), rng.uniform(0, 0.5, -(-samples // (rate_hz // 20))))
    chirp_N = np.sin(2 * np.pi * np.cumsum(rng.uniform(200, 3_000, samples // 500 + 1).repeat(500)[:samples]) / rate_hz)
    return np.repeat((envelope_N * chirp_N)[None], channels, axis=0).astype(np.float32)


def container(
    streams: Sequence[np.ndarray], format: str = "mp4", codec: str = "aac", rate_hz: int = RATE_HZ, starts: Sequence[int] | None = None
) -> bytes:
    """A container file with one audio stream for each (C, N) array; `starts` are their first timestamps in samples."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as file:
        layouts = ["mono" if len(samples_CN) == 1 else "stereo" if len(samples_CN) == 2 else "5.1" for samples_CN in streams]
        written = [file.add_stream(codec, rate=rate_hz, layout=layout, options={"b": "256k"}) for layout in layouts]
        for first in range(0, max(samples_CN.shape[1] for samples_CN in streams), 1_024):
            for index, (stream, samples_CN) in enumerate(zip(written, streams, strict=True)):
                block_CN = samples_CN[:, first : first + 1_024]
                if not block_CN.shape[1]:
                    continue
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block_CN), format="fltp", layout=layouts[index])
                frame.sample_rate, frame.pts = rate_hz, first + (starts[index] if starts else 0)
                file.mux(stream.encode(frame))
        for stream in written:
            file.mux(stream.encode(None))
    return buffer.getvalue()


def write_folder(root: Path) -> None:
    """Finished songs at several depths, one with a record beside it."""
    for name, format in (("Ann - Blue.wav", "wav"), ("album/01 Bob - Red.flac", "flac"), ("album/12 Bob - Green.mp3", "mp3")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(bursts(len(name), 1.0), format))  # type: ignore[arg-type]
    (root / "album" / "deep").mkdir()
    (root / "album" / "deep" / "take_3.m4a").write_bytes(container([bursts(3, 1.0)], "ipod"))
    (root / "album" / "deep" / "take_3.json").write_text(json.dumps({"title": "Third", "artist": "Cy", "license": "CC0"}))
    (root / "album" / "cover.jpg").write_bytes(b"\xff\xd8\xff")
    (root / ".trash").mkdir()
    (root / ".trash" / "old.wav").write_bytes(encode(bursts(9, 0.1)))


def write_musdb18(root: Path) -> list[np.ndarray]:
    """MUSDB18's stem files: two songs of one second, of five streams each; the streams' audio of the first, Blue."""
    first = musdb18_streams(0)
    for name, streams in (("train/Ann - Blue.stem.mp4", first), ("test/Bob & Co - Red - Live.stem.mp4", musdb18_streams(10))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(container(streams))
    return first


def musdb18_streams(seed: int) -> list[np.ndarray]:
    """Mixture, drums, bass, other and vocals of one second."""
    stems = [bursts(seed + stem, 1.0) / 4 for stem in range(4)]
    return [np.sum(stems, axis=0), *stems]


def write_musdb18_hq(root: Path, title: str = "Blue", seed: int = 0) -> list[np.ndarray]:
    """MUSDB18-HQ's folders: one song; mixture, drums, bass, other and vocals as written."""
    streams = musdb18_streams(seed)
    folder = root / "train" / f"Ann - {title}"
    folder.mkdir(parents=True)
    for name, samples_CN in zip(("mixture", "drums", "bass", "other", "vocals"), streams, strict=True):
        (folder / f"{name}.wav").write_bytes(encode(samples_CN))
    return streams


def write_moisesdb(root: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """MoisesDB's folders: one song with two vocal tracks and three others; each file's audio."""
    home = root / "moisesdb_v0.1" / "0a1b2c3d-0000-4000-8000-000000000001"
    stems = {"vocals": ["lead female singer", "background vocals"], "bass": ["bass guitar"], "other_keys": ["synth pad", "synth lead"]}
    record: dict[str, object] = {"song": "Blue", "artist": "Ann", "genre": "rock"}
    written, listed = {}, []
    for stem, kinds in stems.items():
        tracks = []
        for kind in kinds:
            track = f"{len(written):08d}-track"
            samples_CN = bursts(seed + len(written), 1.0) / 5
            (home / stem).mkdir(parents=True, exist_ok=True)
            (home / stem / f"{track}.wav").write_bytes(encode(samples_CN))
            written[f"{stem}/{track}.wav"] = samples_CN
            tracks.append({"id": track, "trackType": kind, "extension": "wav", "has_bleed": stem == "vocals"})
        listed.append({"id": f"{stem}-id", "stemName": stem, "tracks": tracks})
    (home / "data.json").write_text(json.dumps({**record, "stems": listed}))
    return written


def write_catalogue(root: Path) -> Path:
    """The Song Popularity Dataset's two files, as Kaggle has them: the catalogue's path."""
    rows = [
        ("Blue", 40, "Ann"),
        ("BLUE - Remastered 2011", 73, "Ann"),
        ("Red (feat. Cy)", 61, "Bob"),
        ("Red", 12, "Dee"),
        ("Déjà vu", 55, "Éva"),
        ('Say "Yes", please', 30, "Earth, Wind & Fire"),
    ]
    with (root / "song_data.csv").open("w", newline="") as file:
        data = csv.writer(file)
        data.writerow(["song_name", "song_popularity", "song_duration_ms", "acousticness", "key", "audio_mode"])
        data.writerows([title, popularity, 262_333, 0.00552, 8, 1] for title, popularity, _ in rows)
    with (root / "song_info.csv").open("w", newline="") as file:
        info = csv.writer(file)
        info.writerow(["song_name", "artist_name", "album_names", "playlist"])
        info.writerows([title, artist, "Greatest", "00s Rock"] for title, _, artist in rows)
    return root / "song_data.csv"
