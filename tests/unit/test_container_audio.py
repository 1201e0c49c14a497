"""Containers through FFmpeg: every stream in its place, the limits of any other file, nothing opened from inside."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.audio import limits as audio_limits
from infra.audio.containers import _boxes, container_of
from infra.audio.files import AudioError, AudioTooLong, NotAudio, UnreadableAudio, decode, to_stereo_44k
from tests.examples import examples
from tests.source_examples import bursts, container


def offset(found_N: np.ndarray, written_N: np.ndarray) -> int:
    """Samples by which `found_N` is later than `written_N`."""
    size = 2 ** int(np.ceil(np.log2(len(found_N) + len(written_N))))
    correlation = np.fft.irfft(np.fft.rfft(found_N, size) * np.conj(np.fft.rfft(written_N, size)), size)
    peak = int(np.abs(correlation).argmax())
    return peak if peak < size // 2 else peak - size


def test_the_streams_of_a_stem_file_are_told_apart_aligned_and_equally_long() -> None:
    written = [bursts(seed, 1.37) for seed in range(5)]
    data = container(written)
    decoded = [decode(data, stream=stream).samples_CN for stream in range(5)]
    assert {samples_CN.shape for samples_CN in decoded} == {decoded[0].shape}
    assert 0 <= decoded[0].shape[1] - written[0].shape[1] < 1_024
    for found_CN, samples_CN in zip(decoded, written, strict=True):
        assert offset(found_CN[0], samples_CN[0]) == 0
        error_CN = found_CN[:, : samples_CN.shape[1]] - samples_CN
        assert np.square(error_CN).mean() < 0.02 * np.square(samples_CN).mean()


@pytest.mark.parametrize(
    ("format", "codec", "rate_hz", "tolerance"),
    [
        ("mov", "pcm_f32le", 48_000, 0.0),
        ("mov", "pcm_s24le", 96_000, 2e-7),
        ("ipod", "alac", 44_100, 2e-7),
        ("mov", "pcm_s16be", 44_100, 2e-5),
        ("matroska", "flac", 44_100, 2e-5),
        ("matroska", "pcm_u8", 22_050, 4e-3),
        ("wv", "wavpack", 44_100, 4e-3),
    ],
)
def test_what_is_stored_without_loss_comes_back(format: str, codec: str, rate_hz: int, tolerance: float) -> None:
    samples_CN = bursts(7, 0.5, rate_hz)
    audio = decode(container([samples_CN], format, codec, rate_hz))
    assert audio.sample_rate_hz == rate_hz
    np.testing.assert_allclose(audio.samples_CN, samples_CN, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("format", "codec", "rate_hz"), [("webm", "libopus", 48_000), ("ipod", "aac", 44_100), ("mp4", "libmp3lame", 44_100)]
)
def test_what_a_web_page_gives_is_in_time(format: str, codec: str, rate_hz: int) -> None:
    samples_CN = bursts(8, 1.1, rate_hz)
    audio = decode(container([samples_CN], format, codec, rate_hz))
    assert offset(audio.samples_CN[0], samples_CN[0]) == 0
    assert audio.duration_s == pytest.approx(1.1, abs=0.03)


def test_aac_without_a_container_begins_with_its_priming() -> None:
    samples_CN = bursts(9, 1.0)
    audio = decode(container([samples_CN], "adts"))
    assert offset(audio.samples_CN[0], samples_CN[0]) == 1_024  # its header has no place to say how much


def test_a_stream_that_begins_later_is_padded_to_its_place() -> None:
    written = [bursts(1, 1.0), bursts(2, 1.0)]
    data = container(written, "matroska", starts=[0, 4_410])
    assert offset(decode(data, stream=1).samples_CN[0], written[1][0]) == pytest.approx(4_410, abs=44)  # Matroska counts milliseconds
    assert not decode(data, stream=1).samples_CN[:, :4_000].any()
    assert offset(decode(data, stream=0).samples_CN[0], written[0][0]) == 0


def test_surround_and_mono_become_stereo() -> None:
    surround = decode(container([bursts(3, 0.5, channels=6)]))
    assert surround.samples_CN.shape[0] == 6
    assert to_stereo_44k(surround).shape[0] == 2
    assert decode(container([bursts(3, 0.5, channels=1)])).samples_CN.shape[0] == 1


def test_too_many_channels_are_refused() -> None:
    with pytest.raises(UnreadableAudio, match="6 channels are more than 2"):
        decode(container([bursts(3, 0.2, channels=6)]), max_channels=2)


def test_a_stream_that_is_not_there() -> None:
    with pytest.raises(UnreadableAudio, match="audio stream 4 is wanted and the M4A or MP4 file holds 1"):
        decode(container([bursts(0, 0.1)]), stream=4)


def test_a_film_without_sound_is_no_audio() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        picture = file.add_stream("mpeg4", rate=10, width=32, height=32)
        file.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        file.mux(picture.encode(None))
    with pytest.raises(NotAudio, match="holds no audio stream"):
        decode(buffer.getvalue())


def test_a_codec_outside_the_list_is_not_opened() -> None:
    with pytest.raises(NotAudio, match=r"coded as tta.*export"):
        decode(container([bursts(0, 0.2)], "matroska", "tta"))


@pytest.mark.parametrize(("format", "codec", "rate_hz"), [("mp4", "aac", 44_100), ("webm", "libopus", 48_000), ("adts", "aac", 44_100)])
def test_the_limit_holds_with_and_without_a_claim(format: str, codec: str, rate_hz: int) -> None:
    data = container([np.zeros((2, 3 * rate_hz), np.float32)], format, codec, rate_hz)
    assert decode(data, max_duration_s=3.1).duration_s == pytest.approx(3.0, abs=0.1)
    with pytest.raises(AudioTooLong, match=r"1\.5 s allowed"):
        decode(data, max_duration_s=1.5)


def test_a_claim_is_refused_before_anything_is_decoded() -> None:
    data = bytearray(container([bursts(0, 3.0)]))
    start = data.index(b"mdat") + 4
    data[start : start + 30_000] = bytes(30_000)
    with pytest.raises(AudioTooLong, match=r"3\.0 s.*1 s allowed"):
        decode(bytes(data), max_duration_s=1.0)


def test_the_size_of_the_decoded_audio_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    data = container([np.zeros((2, 44_100), np.float32)], "adts")
    decode(data)
    monkeypatch.setattr(audio_limits, "MAX_DECODED_BYTES", 300_000)
    with pytest.raises(AudioTooLong, match="MiB"):
        decode(data)


@pytest.mark.parametrize("format", ["mp4", "adts"])
def test_a_packet_damaged_in_the_middle_makes_the_file_unreadable(format: str) -> None:
    data = bytearray(container([bursts(5, 2.0)], format))
    middle = len(data) // 2
    data[middle : middle + 400] = np.random.default_rng(1).bytes(400)
    with pytest.raises(UnreadableAudio, match="damaged or cut short"):
        decode(bytes(data))


@pytest.mark.parametrize(("format", "codec", "rate_hz"), [("mp4", "aac", 44_100), ("webm", "libopus", 48_000), ("ipod", "alac", 44_100)])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.6])
def test_half_a_download_is_unreadable(format: str, codec: str, rate_hz: int, share: float) -> None:
    data = container([bursts(6, 3.0, rate_hz)], format, codec, rate_hz)
    with pytest.raises(UnreadableAudio, match=r"damaged or cut short|its end is missing|0 samples"):
        decode(data[: round(share * len(data))])


def test_fragments_that_claim_packets_without_end_are_refused_at_once() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"}) as file:
        stream = file.add_stream("aac", rate=44_100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(bursts(0, 1.0), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    data = bytearray(buffer.getvalue())
    assert decode(bytes(data)).duration_s == pytest.approx(1.0, abs=0.05)
    at = data.index(b"trun")
    data[at + 4 : at + 8], data[at + 8 : at + 12] = bytes(3) + b"\x01", (40_000_000).to_bytes(4)
    with pytest.raises(UnreadableAudio, match=r"claims 400\d* packets"):
        decode(bytes(data))


FTYP = b"\0\0\0\x10ftypM4A \0\0\0\0"
EMPTY_BOXES = b"\0\0\0\x08free" * (100 * 2**20 // 8 - 16)


@pytest.mark.parametrize("data", [FTYP + EMPTY_BOXES, FTYP + (len(EMPTY_BOXES) + 8).to_bytes(4) + b"moov" + EMPTY_BOXES])
def test_a_file_of_empty_boxes_is_refused_before_ffmpeg_walks_over_them(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MiB of them took half a minute."""
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(UnreadableAudio, match="more than 100000 boxes"):
        decode(data)


def test_boxes_are_walked_over_once_at_every_depth() -> None:
    """As a box that holds boxes says where it ends, and no further than the one that holds it."""
    inner = b"\0\0\0\x10trun\0\0\0\0\0\0\0\x01" + b"\0\0\0\x08free"
    traf = b"\0\0\xff\xfftraf" + inner  # claims more than there is
    moof = (len(traf) + 8).to_bytes(4) + b"moof" + traf
    large = b"\0\0\0\x01mdat" + (20).to_bytes(8) + b"moof"
    data = FTYP + moof + large + b"\0\0\0\0free" + b"moov"
    assert [kind for kind, _ in _boxes(data, 0, len(data))] == [b"ftyp", b"moof", b"traf", b"trun", b"free", b"mdat", b"free"]


def test_only_known_signatures_reach_ffmpeg(tmp_path: Path) -> None:
    (tmp_path / "secret.ts").write_bytes(container([bursts(0, 0.5)], "mpegts"))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n".encode()
    assert container_of(playlist) is None
    for data in (playlist, f"ffconcat version 1.0\nfile {tmp_path}/secret.ts\n".encode(), (tmp_path / "secret.ts").read_bytes()):
        with pytest.raises(NotAudio):
            decode(data)


EXAMPLES = {
    "mp4": container([bursts(4, 0.3)]),
    "webm": container([bursts(4, 0.3, 48_000)], "webm", "libopus", 48_000),
    "alac": container([bursts(4, 0.3)], "ipod", "alac"),
    "adts": container([bursts(4, 0.3)], "adts"),
}


@settings(max_examples=examples(150))
@given(data=st.data(), format=st.sampled_from(sorted(EXAMPLES)))
def test_damage_gives_audio_or_one_clear_line_and_nothing_else(data: st.DataObject, format: str) -> None:
    content = bytearray(EXAMPLES[format])
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
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
