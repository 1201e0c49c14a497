"""What a stranger sent is looked at in a process that may die of it, and every container that is accepted passes."""

import io
import os
import signal
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import soundfile

from infra.audio.decoder import Decoder
from pipelines.acquire.file_kinds import probe
from pipelines.song import SongError
from tests.source_examples import bursts, container


def written(format: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, bursts(0, 1.0).T, 44_100, format=format, subtype=subtype)
    return buffer.getvalue()


def fragmented(claimed: int) -> bytes:
    """A second of AAC in an MP4 of fragments, the first of which claims so many packets of the same size."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"}) as file:
        stream = file.add_stream("aac", rate=44_100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(bursts(0, 1.0)), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    data = bytearray(buffer.getvalue())
    if claimed:
        at = data.index(b"trun")
        data[at + 4 : at + 8], data[at + 8 : at + 12] = bytes(3) + b"\x01", claimed.to_bytes(4)
    return bytes(data)


GOOD = {
    "wav": lambda: written("WAV"),
    "wav, 24 bits": lambda: written("WAV", "PCM_24"),
    "wav, floats": lambda: written("WAV", "FLOAT"),
    "wav, ADPCM": lambda: written("WAV", "IMA_ADPCM"),
    "wav, μ-law": lambda: written("WAV", "ULAW"),
    "flac": lambda: written("FLAC"),
    "mp3": lambda: written("MP3"),
    "ogg": lambda: written("OGG"),
    "aiff": lambda: written("AIFF"),
    "au": lambda: written("AU"),
    "caf": lambda: written("CAF"),
    "mp4": lambda: container([bursts(4, 1.0)]),
    "mp4, fragments": lambda: fragmented(0),
    "m4a": lambda: container([bursts(4, 1.0)], "ipod", "alac"),
    "aac": lambda: container([bursts(4, 1.0)], "adts"),
    "webm": lambda: container([bursts(4, 1.0, 48_000)], "webm", "libopus", 48_000),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_container_that_is_accepted_passes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "download"
    path.write_bytes(GOOD[name]())
    assert probe(path, max_duration_s=2.0) == name.partition(",")[0]


@pytest.mark.parametrize("name", ["wav", "flac", "mp4", "webm"])
def test_what_its_header_says_to_be_too_long_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "download"
    path.write_bytes(GOOD[name]())
    with pytest.raises(SongError, match=r"1 s are more than max_duration_s = 0\.5"):
        probe(path, max_duration_s=0.5)


def test_a_header_that_claims_packets_without_end_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "download"
    path.write_bytes(fragmented(40_000_000))
    before = psutil.Process().memory_info().rss
    with pytest.raises(SongError, match=r"the mp4 file is damaged \(the header claims 400\d* packets .*\): give another address"):
        probe(path, max_duration_s=1_200.0)
    assert psutil.Process().memory_info().rss - before < 50e6


def test_this_process_opens_nothing_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("opened in the worker")

    monkeypatch.setattr(av, "open", opened)
    path = tmp_path / "download"
    path.write_bytes(written("WAV"))
    assert probe(path, max_duration_s=2.0) == "wav"


def test_a_file_that_ends_its_process_twice_is_a_reject_and_the_next_one_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "download"
    path.write_bytes(written("WAV"))
    started = Decoder._started

    def dies(self: Decoder) -> object:
        child = started(self)
        os.kill(child.pid, signal.SIGSEGV)
        child.wait()
        return child

    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "_started", dies)
        with pytest.raises(SongError, match=r"the wav file is damaged \(the decoder ended 2 times on this file \(SIGSEGV\)\)"):
            probe(path, max_duration_s=2.0)
    assert probe(path, max_duration_s=2.0) == "wav"
