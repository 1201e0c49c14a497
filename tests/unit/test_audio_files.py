"""Audio files: round trips, limits before and while decoding, one error a kind of fault."""

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.audio import files as audio_files
from infra.audio import limits as audio_limits
from infra.audio.files import Audio, AudioError, AudioTooLong, NotAudio, UnreadableAudio, decode, encode, to_stereo_44k
from infra.errors import UserError
from tests.examples import examples


def noise(channels: int, samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (channels, samples)).astype(np.float32)


def tone(hz: float, rate_hz: int, duration_s: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * duration_s)) / rate_hz, dtype=np.float64)[None].astype(np.float32)


def file_of(samples_CN: np.ndarray, rate_hz: int = 44_100, format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples_CN.T, rate_hz, format=format, subtype=subtype)
    return buffer.getvalue()


def with_claimed_bytes(wav: bytes, claim: int) -> bytes:
    at = wav.index(b"data")
    return wav[: at + 4] + struct.pack("<I", claim) + wav[at + 8 :]


@settings(max_examples=examples(40))
@given(
    samples=st.integers(1, 150_000) | st.sampled_from([1, 2, 65_535, 65_536, 65_537, 131_072]),
    channels=st.integers(1, 2),
    format=st.sampled_from(["wav", "flac"]),
    seed=st.integers(0, 9),
)
def test_sixteen_bits_survive_a_round_trip(samples: int, channels: int, format: str, seed: int) -> None:
    pcm_CN = np.random.default_rng(seed).integers(-32_768, 32_768, (channels, samples))
    samples_CN = (pcm_CN / 32_768).astype(np.float32)
    audio = decode(encode(samples_CN, format))  # type: ignore[arg-type]
    assert audio.sample_rate_hz == 44_100
    assert audio.samples_CN.dtype == np.float32
    np.testing.assert_array_equal(audio.samples_CN, samples_CN)


@pytest.mark.parametrize("format", list(audio_files.MIME_TYPES))
def test_every_format_is_deterministic_and_keeps_the_sound(format: str) -> None:
    samples_CN = np.repeat(tone(440.0, 44_100, 7.0), 2, axis=0)
    data = encode(samples_CN, format)  # type: ignore[arg-type]
    assert data == encode(samples_CN, format)  # type: ignore[arg-type]
    decoded_CN = decode(data).samples_CN
    assert decoded_CN.shape == samples_CN.shape
    middle = slice(44_100, 6 * 44_100)
    assert np.abs(decoded_CN[:, middle] - samples_CN[:, middle]).max() < 0.02


def test_two_ogg_files_differ_only_by_their_sound() -> None:
    one, other = encode(noise(1, 9_999, 1), "ogg"), encode(noise(1, 9_999, 2), "ogg")
    assert one[14:18] == other[14:18]
    assert one != other
    # A reader checks every page's checksum, so a wrong one would lose the stream.
    assert decode(other).samples_CN.shape == (1, 9_999)


def test_clipping_is_held_at_full_scale_and_never_wraps() -> None:
    decoded_CN = decode(encode(np.array([[1.5, -1.5, 1.0, -1.0, 0.0]], np.float32))).samples_CN
    np.testing.assert_allclose(decoded_CN, [[1, -1, 1, -1, 0]], atol=1 / 32_768)


@settings(max_examples=examples(60))
@given(
    rate_hz=st.sampled_from([4_000, 8_000, 11_025, 16_000, 22_050, 32_000, 44_056, 44_100, 48_000, 96_000, 192_000])
    | st.integers(4_000, 384_000),
    samples=st.integers(1, 20_000),
    channels=st.sampled_from([1, 2, 6]),
)
def test_any_rate_becomes_stereo_of_the_same_duration(rate_hz: int, samples: int, channels: int) -> None:
    audio = Audio(samples_CN=noise(channels, samples), sample_rate_hz=rate_hz)
    stereo_CN = to_stereo_44k(audio)
    assert stereo_CN.shape == (2, max(1, round(samples * 44_100 / rate_hz)))
    assert stereo_CN.dtype == np.float32
    assert np.isfinite(stereo_CN).all()
    np.testing.assert_array_equal(stereo_CN, to_stereo_44k(audio))


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 48_000, 96_000])
def test_resampling_keeps_the_pitch_and_the_time(rate_hz: int) -> None:
    stereo_CN = to_stereo_44k(Audio(samples_CN=tone(1_000.0, rate_hz, 1.0), sample_rate_hz=rate_hz))
    inner = slice(4_410, -4_410)
    np.testing.assert_allclose(stereo_CN[:, inner], np.repeat(tone(1_000.0, 44_100, 1.0), 2, axis=0)[:, inner], atol=2e-3)


def test_stereo_at_the_right_rate_is_a_copy() -> None:
    audio = Audio(samples_CN=noise(2, 100), sample_rate_hz=44_100)
    stereo_CN = to_stereo_44k(audio)
    np.testing.assert_array_equal(stereo_CN, audio.samples_CN)
    assert not np.shares_memory(stereo_CN, audio.samples_CN)


def test_surround_is_mixed_by_the_standard() -> None:
    for channel, (left, right) in enumerate([(1, 0), (0, 1), (0.7071, 0.7071), (0, 0), (0.7071, 0), (0, 0.7071)]):
        samples_CN = np.zeros((6, 10), np.float32)
        samples_CN[channel] = 0.5
        stereo_CN = to_stereo_44k(Audio(samples_CN=samples_CN, sample_rate_hz=44_100))
        np.testing.assert_allclose(stereo_CN[:, 0], [0.5 * left, 0.5 * right], atol=1e-4)


@pytest.mark.parametrize("channels", [3, 4, 5, 7, 8])
def test_other_layouts_are_refused(channels: int) -> None:
    with pytest.raises(UnreadableAudio, match=rf"{channels} channels.*export"):
        to_stereo_44k(Audio(samples_CN=noise(channels, 10), sample_rate_hz=44_100))


@pytest.mark.parametrize("claim", [2**31 - 1, 2**32 - 1])
def test_a_wav_from_a_pipe_whose_length_is_unknown_gives_what_is_there(claim: int) -> None:
    samples_CN = noise(2, 50_000)
    decoded_CN = decode(with_claimed_bytes(file_of(samples_CN), claim), max_duration_s=2.0).samples_CN
    np.testing.assert_allclose(decoded_CN, samples_CN, atol=1e-4)


@pytest.mark.parametrize("claim", [200_004, 10**8, 2**31 - 2**13, 3_175_200_000])
def test_a_wav_that_claims_more_than_it_holds_is_unreadable(claim: int) -> None:
    with pytest.raises(UnreadableAudio, match=f"claims {claim} bytes.*holds 200000"):
        decode(with_claimed_bytes(file_of(noise(2, 50_000)), claim))


def test_a_wav_that_claims_and_holds_nothing_is_unreadable() -> None:
    wav = file_of(noise(1, 10))
    with pytest.raises(UnreadableAudio, match="holds 0"):
        decode(with_claimed_bytes(wav, 10**8)[: wav.index(b"data") + 8])


def flac_claiming(samples_CN: np.ndarray, claim: int) -> bytes:
    flac = bytearray(file_of(samples_CN, format="FLAC"))
    flac[21] = flac[21] & 0xF0 | claim >> 32
    flac[22:26] = (claim & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(flac)


def test_a_flac_that_claims_ten_hours_is_refused_before_decoding() -> None:
    with pytest.raises(AudioTooLong, match=r"36000.0 s.*1200 s"):
        decode(flac_claiming(noise(1, 1_000), 36_000 * 44_100))


def test_a_flac_of_unknown_length_is_read_and_still_limited() -> None:
    flac = flac_claiming(noise(2, 200_000), 0)
    assert decode(flac).samples_CN.shape == (2, 200_000)
    with pytest.raises(AudioTooLong):
        decode(flac, max_duration_s=2.0)


def test_a_bomb_of_silence_is_refused_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_limits, "MAX_DECODED_BYTES", 100_000)
    assert decode(encode(np.zeros((2, 12_500), np.float32), "flac")).samples_CN.shape == (2, 12_500)
    with pytest.raises(AudioTooLong, match="MiB"):
        decode(encode(np.zeros((2, 12_501), np.float32), "flac"))


@pytest.mark.parametrize(("seconds", "fits"), [(1.0, True), (1.001, False), (30.0, False)])
@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_the_limit_holds_in_every_format(format: str, seconds: float, fits: bool) -> None:
    data = encode(noise(1, round(44_100 * seconds)), format)  # type: ignore[arg-type]
    if fits:
        assert decode(data, max_duration_s=1.0).duration_s == pytest.approx(seconds)
    else:
        with pytest.raises(AudioTooLong, match="1 s allowed"):
            decode(data, max_duration_s=1.0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello, this is text\n" * 50, "not audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "not audio"),
        (b"\x00", "not audio"),
        (b"#EXTM3U\n#EXTINF:9,\n/etc/hostname\n#EXT-X-ENDLIST\n", "not audio"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not audio"),
    ],
)
def test_what_is_not_audio(data: bytes, words: str) -> None:
    with pytest.raises(NotAudio, match=words):
        decode(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (file_of(np.zeros((1, 0))), "0 samples"),
        (file_of(np.full((1, 9), np.nan), subtype="FLOAT"), "9 of 9 samples are NaN"),
        (file_of(np.array([[0.0, np.inf, 0.1]]), subtype="FLOAT"), "1 of 3"),
        (file_of(np.full((2, 9), -1e30), subtype="FLOAT"), "peak 1e.30"),
        (file_of(noise(1, 10))[:20], "damaged"),
        (file_of(noise(2, 99_999), format="FLAC")[:50_000], "damaged"),
        (file_of(noise(1, 99_999), format="OGG", subtype="VORBIS")[:60], "damaged"),
        (file_of(noise(1, 10), rate_hz=100), "sample rate 100 Hz"),
        (file_of(noise(9, 10)), "9 channels are more than 8"),
        (file_of(noise(8, 10)), "8 channels cannot be mixed"),
        (b"\x00\x00\x00\x18ftypM4A " + bytes(400), "M4A.*damaged"),
        (b"\x1aE\xdf\xa3" + bytes(400), "WebM.*damaged"),
    ],
)
def test_what_is_unreadable(data: bytes, words: str) -> None:
    with pytest.raises(UnreadableAudio, match=words):
        decode(data)


def test_a_wav_of_empty_chunks_is_refused_before_libsndfile_walks_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile.SoundFile, "__init__", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(UnreadableAudio, match="more than 100000 chunks"):
        decode(b"RIFF\xff\xff\xff\x7fWAVE" + b"junk\0\0\0\0" * (100 * 2**20 // 8 - 2))


def test_a_plain_file_holds_one_stream() -> None:
    with pytest.raises(UnreadableAudio, match="audio stream 1 is wanted and the file holds one"):
        decode(encode(noise(2, 100)), stream=1)
    with pytest.raises(UserError, match="stream is -1"):
        decode(encode(noise(2, 100)), stream=-1)


@settings(max_examples=examples(150))
@given(data=st.data(), format=st.sampled_from(["wav", "flac", "ogg"]))
def test_damage_gives_audio_or_one_clear_line_and_nothing_else(data: st.DataObject, format: str) -> None:
    content = bytearray(encode(noise(1, 3_000), format))  # type: ignore[arg-type]
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        audio = decode(bytes(content[:cut]), max_duration_s=10.0)
    except AudioError as fault:
        message = str(fault)
    else:
        assert np.isfinite(audio.samples_CN).all()
        assert 0 < audio.duration_s <= 10.0
        return
    assert "\n" not in message
    assert ";" in message


@pytest.mark.parametrize("bad", [np.zeros((2, 0)), np.zeros((3, 9)), np.zeros(9), np.full((1, 9), np.nan)])
def test_what_cannot_be_written(bad: np.ndarray) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        encode(bad)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UserError, match="wav, flac, mp3, ogg"):
        encode(noise(1, 9), "aiff")  # type: ignore[arg-type]
