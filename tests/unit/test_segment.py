"""Segments: lengths, gain, voice, gates, and what is wrong with a song."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from infra.storage import Place, StorageError
from model.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from model.level import active_level_db
from pipelines.segment import Reject, Segment, SegmentConfig, cut, segment_song, voice
from pipelines.songs import FoundSong, MediaFile, SongError
from pipelines.sources import list_songs, parse_source

LEAST = round(SegmentConfig().min_duration_s * SAMPLE_RATE_HZ)


def stems(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A tone that stops now and then, and noise."""
    random = np.random.default_rng(seed)
    time_N = np.arange(samples) / SAMPLE_RATE_HZ
    vocal_N = 0.2 * np.sin(2 * np.pi * 330 * time_N) * (np.sin(2 * np.pi * 0.5 * time_N) > -0.5)
    return (
        np.stack([vocal_N, vocal_N]).astype(np.float32),
        0.05 * random.standard_normal((2, samples), dtype=np.float32),
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(LEAST, 2 * SEGMENT_SAMPLES + LEAST + 1))
def test_segments_tile_the_song_and_only_a_short_rest_is_lost(samples: int) -> None:
    vocal_CN, accompaniment_CN = stems(samples)
    pieces = list(cut(vocal_CN, accompaniment_CN, SegmentConfig()))
    assert all(isinstance(piece, Segment) for piece in pieces)
    covered = sum(piece.vocal_CN.shape[1] for piece in pieces)
    assert 0 <= samples - covered < LEAST
    for index, piece in enumerate(pieces):
        assert (piece.index, piece.start_s) == (index, index * SEGMENT_SAMPLES / SAMPLE_RATE_HZ)
        assert piece.vocal_CN.shape == piece.accompaniment_CN.shape
        assert index == len(pieces) - 1 or piece.vocal_CN.shape[1] == SEGMENT_SAMPLES


def test_one_gain_brings_the_mixture_to_full_scale_and_keeps_the_balance() -> None:
    vocal_CN, accompaniment_CN = stems(LEAST)
    (segment,) = cut(vocal_CN, accompaniment_CN, SegmentConfig())
    assert np.abs(segment.vocal_CN + segment.accompaniment_CN).max() == pytest.approx(1, abs=1e-6)
    gain = 10 ** (segment.gain_db / 20)
    np.testing.assert_allclose(segment.vocal_CN, vocal_CN * gain, rtol=1e-5)
    np.testing.assert_allclose(segment.accompaniment_CN, accompaniment_CN * gain, rtol=1e-5)
    assert gain != pytest.approx(1, abs=0.01)


def test_voice_is_measured_where_somebody_sings() -> None:
    frames = 100
    vocal_CN = np.zeros((2, frames * HOP_SAMPLES), np.float32)
    time_N = np.arange(25 * HOP_SAMPLES) / SAMPLE_RATE_HZ
    vocal_CN[:, : len(time_N)] = 0.5 * np.sin(2 * np.pi * 441 * time_N)
    active, level_db = voice(vocal_CN, SegmentConfig())
    assert active == pytest.approx(0.25)
    assert level_db == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.05)
    assert voice(np.zeros((2, 5_000), np.float32), SegmentConfig()) == (0.0, -120.0)


def test_inference_measures_a_vocal_as_preparation_does() -> None:
    vocal_CN, _ = stems(10 * SAMPLE_RATE_HZ)
    assert active_level_db(vocal_CN) == pytest.approx(voice(vocal_CN, SegmentConfig())[1], abs=0.3)


@pytest.mark.parametrize(
    ("vocal_gain", "band_gain", "reason"), [(0, 0, "silence"), (0, 1, "voice in 0.0%"), (1, 0, "no accompaniment"), (1e-4, 1e-4, "silence")]
)
def test_a_gate_names_segment_value_and_limit(vocal_gain: float, band_gain: float, reason: str) -> None:
    vocal_CN, accompaniment_CN = stems(LEAST)
    (reject,) = cut(vocal_CN * np.float32(vocal_gain), accompaniment_CN * np.float32(band_gain), SegmentConfig())
    assert isinstance(reject, Reject)
    assert (reject.stage, reject.segment) == ("gate", 0)
    assert reason in reject.reason


def test_a_song_below_the_least_duration_is_refused() -> None:
    with pytest.raises(SongError, match=r"4\.99 s of audio are less than the 5 s"):
        list(cut(*stems(LEAST - 441), SegmentConfig()))


@pytest.mark.parametrize(
    "wrong", [{"min_duration_s": 0}, {"min_duration_s": 60}, {"min_vocal_active": 1.5}, {"voice_floor_db": 3}, {"voice_range_db": 0}]
)
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        SegmentConfig(**wrong)


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
        "another length": (wav(vocal_CN[:, : LEAST // 2]), "segment", "lengths differ by 2.50 s"),
    }


@pytest.mark.parametrize("fault", bad_vocals())
def test_a_bad_song_is_a_reject_with_stage_and_reason(fault: str, tmp_path: Path) -> None:
    vocals, stage, reason = bad_vocals()[fault]
    song = segment_song(found(tmp_path, vocals, wav(stems(LEAST)[1])), Place(str(tmp_path)), SegmentConfig())
    assert song.segments == ()
    assert [reject.stage for reject in song.rejects] == [stage]
    assert reason in song.rejects[0].reason
    assert len(song.identity.song_id) == 16


@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (48_000, 2), (44_100, 6)])
def test_other_rates_and_channels_are_brought_to_44100_stereo(rate_hz: int, channels: int, tmp_path: Path) -> None:
    time_N = np.arange(6 * rate_hz) / rate_hz
    tone_CN = np.repeat(0.3 * np.sin(2 * np.pi * 300 * time_N)[None], channels, axis=0)
    song = segment_song(found(tmp_path, wav(tone_CN, rate_hz), wav(stems(6 * SAMPLE_RATE_HZ)[1])), Place(str(tmp_path)), SegmentConfig())
    assert song.rejects == ()
    assert song.segments[0].vocal_CN.shape == (2, 6 * SAMPLE_RATE_HZ)


def test_the_id_is_the_audio_and_a_known_song_is_not_decoded(tmp_path: Path) -> None:
    vocal_CN, accompaniment_CN = stems(LEAST)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    songs = [found(tmp_path / name, wav(vocal_CN), wav(accompaniment_CN)) for name in "ab"]
    ids = {segment_song(song, Place(str(tmp_path)), SegmentConfig()).identity.song_id for song in songs}
    assert len(ids) == 1
    known = segment_song(songs[0], Place(str(tmp_path)), SegmentConfig(), frozenset(ids))
    assert (known.segments, known.rejects) == ((), ())


@pytest.mark.parametrize("record", [b"[" * 100_000, b'{"title": ' + b"[" * 100_000, b"\xff", b"[]"])
def test_a_record_that_cannot_be_read_is_a_reject(record: bytes, tmp_path: Path) -> None:
    song = found(tmp_path, b"x", b"x")
    (tmp_path / "song/song.json").write_bytes(record)
    (song,) = list_songs(parse_source(f"pairs:{tmp_path}"))
    (reject,) = segment_song(song, Place(str(tmp_path)), SegmentConfig()).rejects
    assert (reject.stage, "song.json is not" in reject.reason) == ("read", True)


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    song = found(tmp_path, *(wav(stem_CN) for stem_CN in stems(LEAST)))
    (tmp_path / "song/song.json").write_bytes(b'{"title": "a\\ud800b", "artist": 7}')
    (song,) = list_songs(parse_source(f"pairs:{tmp_path}"))
    identity = segment_song(song, Place(str(tmp_path)), SegmentConfig()).identity
    assert (identity.title, identity.artist) == ("a?b", "7")


def test_a_storage_that_fails_is_no_fault_of_the_song(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    media = (MediaFile(address="s3://b/x/vocals.wav", role="vocals"), MediaFile(address="s3://b/x/accompaniment.wav", role="accompaniment"))
    song = FoundSong(url="s3://b/x", source="pairs", version="", media=media)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    with pytest.raises(StorageError, match="cannot be reached"):
        segment_song(song, Place("s3://b"), SegmentConfig())
