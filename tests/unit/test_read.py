"""Reading a song: hashes, ids, decoding in a child process, stems summed by role; what is wrong becomes a reject."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from infra.audio.decoder import Decoder
from infra.settings import S3Access
from infra.storage.place import Place, StorageError
from model.dimensions import SAMPLE_RATE_HZ
from pipelines.song import FoundSong, MediaFile, Role, SongError
from pipelines.sources import list_songs, parse_source
from pipelines.stages.decode import MAX_FILE_BYTES, MAX_RECORD_BYTES, SongFiles, Stops, read_song, sum_by_role
from pipelines.stages.segment import SegmentConfig

LEAST = 5 * SAMPLE_RATE_HZ


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as decoder:
        yield decoder


def stems(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Two tones, (2, N) each."""
    time_N = np.arange(samples) / SAMPLE_RATE_HZ
    tones = (0.3 * np.sin(2 * np.pi * hz * time_N) for hz in (441, 110))
    vocal_CN, accompaniment_CN = (np.stack([tone_N, tone_N]).astype(np.float32) for tone_N in tones)
    return vocal_CN, accompaniment_CN


def wav(samples_CN: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples_CN.T, rate_hz, format="WAV", subtype=subtype)
    return buffer.getvalue()


def found(folder: Path, vocals: bytes, accompaniment: bytes) -> FoundSong:
    (folder / "song").mkdir()
    (folder / "song/vocals.wav").write_bytes(vocals)
    (folder / "song/accompaniment.wav").write_bytes(accompaniment)
    (song,) = list_songs(parse_source(f"pairs:{folder}"))
    return song


def bad_vocals() -> dict[str, tuple[bytes, str, str]]:
    vocal_CN, _ = stems(LEAST)
    nan_CN = vocal_CN.copy()
    nan_CN[0, 100] = np.nan
    lying = bytearray(wav(vocal_CN[:, : LEAST // 2]))
    lying[40:44] = (len(wav(vocal_CN)) - 44).to_bytes(4, "little")
    return {
        "not audio": (b"these are words" * 99, "decode", "not audio"),
        "empty file": (b"", "decode", "empty"),
        "no samples": (wav(vocal_CN[:, :0]), "decode", "0 samples"),
        "NaN": (wav(nan_CN, subtype="FLOAT"), "decode", "NaN"),
        "seven channels": (wav(np.repeat(vocal_CN[:1], 7, axis=0)), "decode", "channels"),
        "a header that promises more": (bytes(lying), "decode", "claims"),
        "another length": (wav(vocal_CN[:, : LEAST // 2]), "decode", "lengths differ by 2.50 s"),
    }


@pytest.mark.parametrize("fault", bad_vocals())
def test_a_bad_song_is_a_reject_with_stage_and_reason(decoder: Decoder, fault: str, tmp_path: Path) -> None:
    vocals, stage, reason = bad_vocals()[fault]
    song = read_song(found(tmp_path, vocals, wav(stems(LEAST)[1])), None, SegmentConfig(), decoder, Stops())
    assert song.vocal_CN is None
    assert song.reject is not None
    assert song.reject.stage == stage
    assert reason in song.reject.reason
    assert len(song.identity.song_id) == 16


@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (48_000, 2), (44_100, 6)])
def test_other_rates_and_channels_are_brought_to_44100_stereo(decoder: Decoder, rate_hz: int, channels: int, tmp_path: Path) -> None:
    time_N = np.arange(6 * rate_hz) / rate_hz
    tone_CN = np.repeat(0.3 * np.sin(2 * np.pi * 300 * time_N)[None], channels, axis=0)
    song = read_song(found(tmp_path, wav(tone_CN, rate_hz), wav(stems(6 * SAMPLE_RATE_HZ)[1])), None, SegmentConfig(), decoder, Stops())
    assert song.reject is None
    assert song.vocal_CN is not None
    assert song.vocal_CN.shape == (2, 6 * SAMPLE_RATE_HZ)


def test_the_id_is_the_audio_and_a_known_song_is_not_decoded(decoder: Decoder, tmp_path: Path) -> None:
    vocal_CN, accompaniment_CN = stems(LEAST)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    songs = [found(tmp_path / name, wav(vocal_CN), wav(accompaniment_CN)) for name in "ab"]
    ids = {read_song(song, None, SegmentConfig(), decoder, Stops()).identity.song_id for song in songs}
    assert len(ids) == 1
    known = read_song(songs[0], None, SegmentConfig(), decoder, Stops(known=frozenset(ids)))
    assert (known.vocal_CN, known.reject) == (None, None)
    taken = read_song(songs[0], None, SegmentConfig(), decoder, Stops(taken=frozenset(ids)))
    assert taken.reject is not None
    assert taken.reject.stage == "takedown"


@pytest.mark.parametrize("record", [b"[" * 100_000, b'{"title": ' + b"[" * 100_000, b"\xff", b"[]"])
def test_a_record_that_cannot_be_read_is_a_reject(decoder: Decoder, record: bytes, tmp_path: Path) -> None:
    song = found(tmp_path, b"x", b"x")
    (tmp_path / "song/song.json").write_bytes(record)
    (song,) = list_songs(parse_source(f"pairs:{tmp_path}"))
    reject = read_song(song, None, SegmentConfig(), decoder, Stops()).reject
    assert reject is not None
    assert (reject.stage, "song.json is not" in reject.reason) == ("read", True)


def test_half_a_surrogate_pair_is_replaced(decoder: Decoder, tmp_path: Path) -> None:
    song = found(tmp_path, *(wav(stem_CN) for stem_CN in stems(LEAST)))
    (tmp_path / "song/song.json").write_bytes(b'{"title": "a\\ud800b", "artist": 7}')
    (song,) = list_songs(parse_source(f"pairs:{tmp_path}"))
    identity = read_song(song, None, SegmentConfig(), decoder, Stops()).identity
    assert (identity.title, identity.artist) == ("a?b", "7")


def test_a_storage_that_fails_is_no_fault_of_the_song(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    media = (MediaFile(address="s3://b/x/vocals.wav", role="vocals"), MediaFile(address="s3://b/x/accompaniment.wav", role="accompaniment"))
    song = FoundSong(url="s3://b/x", source="pairs", version="", media=media)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    with pytest.raises(StorageError, match="cannot be reached"):
        read_song(song, None, SegmentConfig(), decoder, Stops())


def test_files_of_one_role_are_summed_and_all_are_cut_to_the_shortest() -> None:
    def part(name: str, role: str, samples: int, value: float) -> tuple[MediaFile, np.ndarray]:
        return MediaFile(address=f"/song/{name}.wav", role=role), np.full((2, samples), value, np.float32)  # type: ignore[arg-type]

    sums = sum_by_role([part("lead", "vocals", 100, 1), part("drums", "accompaniment", 99, 2), part("bass", "accompaniment", 101, 4)], 0.1)
    assert {role: (audio_CN.shape, float(audio_CN[0, 0])) for role, audio_CN in sums.items()} == {
        "vocals": ((2, 99), 1.0),
        "accompaniment": ((2, 99), 6.0),
    }
    with pytest.raises(SongError, match=r"lengths differ by 1\.00 s \(lead\.wav 1\.00 s, drums\.wav 2\.00 s\)"):
        sum_by_role([part("lead", "vocals", SAMPLE_RATE_HZ, 1), part("drums", "accompaniment", 2 * SAMPLE_RATE_HZ, 2)], 0.1)


def test_a_file_that_is_too_large_is_a_reject_and_is_not_read(decoder: Decoder, tmp_path: Path) -> None:
    song = found(tmp_path, b"x", b"x")
    with (tmp_path / "song/vocals.wav").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # takes no room, and a second to hash
    begun = time.perf_counter()
    reject = read_song(song, None, SegmentConfig(), decoder, Stops()).reject
    assert reject is not None
    assert (reject.stage, "vocals.wav has 1024.0 MiB, more than the 1024 allowed" in reject.reason) == ("read", True)
    assert time.perf_counter() - begun < 0.3


def test_a_record_that_is_too_large_is_a_reject(decoder: Decoder, tmp_path: Path) -> None:
    found(tmp_path, b"x", b"x")
    with (tmp_path / "song/song.json").open("wb") as file:
        file.truncate(MAX_RECORD_BYTES + 1)
    (song,) = list_songs(parse_source(f"pairs:{tmp_path}"))
    reject = read_song(song, None, SegmentConfig(), decoder, Stops()).reject
    assert reject is not None
    assert "song.json has 16.0 MiB" in reject.reason


class Fetched:
    """Reads of a bucket that a local folder stands for, so that what is in memory can be counted."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.names = folder, list[str]()
        monkeypatch.setattr(Place, "read_bytes", lambda place: self.read_bytes(place))
        monkeypatch.setattr(Place, "size", lambda place: (folder / place.key).stat().st_size)

    def read_bytes(self, place: Place) -> bytes:
        self.names.append(place.name)
        return (self.folder / place.key).read_bytes()


def stored_stems(folder: Path) -> FoundSong:
    for name in ("vocals", "drums", "bass"):
        (folder / f"{name}.wav").write_bytes(wav(stems(LEAST)[0]) + name.encode())
    roles: dict[str, Role] = {"vocals": "vocals", "drums": "accompaniment", "bass": "accompaniment"}
    media = tuple(MediaFile(address=f"s3://b/{name}.wav", role=role) for name, role in roles.items())
    return FoundSong(url="s3://b/x", source="moisesdb", version="", media=media)


def test_a_small_song_is_fetched_once_and_of_a_large_one_a_file_is_in_memory_at_a_time(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song, fetched = stored_stems(tmp_path), Fetched(tmp_path, monkeypatch)
    small = read_song(song, S3Access(), SegmentConfig(), decoder, Stops())
    assert (small.reject, fetched.names) == (None, ["vocals.wav", "drums.wav", "bass.wav"])
    monkeypatch.setattr("pipelines.stages.decode.HELD_BYTES", 10)
    files = SongFiles(song, S3Access())
    for file in song.media:
        assert files.held == {}
        assert isinstance(files.source(file.address), bytes)
    large = read_song(song, S3Access(), SegmentConfig(), decoder, Stops())
    assert large.identity == small.identity
    assert np.array_equal(large.accompaniment_CN, small.accompaniment_CN)  # type: ignore[arg-type]


def test_a_file_of_several_streams_is_fetched_once_for_all_and_one_that_changes_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "song.mp4").write_bytes(b"five streams")
    media = tuple(MediaFile(address="s3://b/song.mp4", role="vocals", stream=stream) for stream in range(5))
    song, fetched = FoundSong(url="s3://b/x", source="musdb18", version="", media=media), Fetched(tmp_path, monkeypatch)
    monkeypatch.setattr("pipelines.stages.decode.HELD_BYTES", 10)
    files = SongFiles(song, S3Access())
    assert [files.source(file.address) for file in media] == [b"five streams"] * 5
    assert len(fetched.names) == 2, "to hash it, to decode it"
    assert files.held == {}
    files = SongFiles(song, S3Access())
    (tmp_path / "song.mp4").write_bytes(b"others")
    with pytest.raises(SongError, match="changed while it was read"):
        files.source("s3://b/song.mp4")
