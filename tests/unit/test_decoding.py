"""Decoding in a child: the same audio and the same errors, whatever the child dies of."""

import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from infra.audio.decoder import Decoder, DecoderCrashed, DecoderTimeout, _ChildDiedError
from infra.audio.decoders import Decoders
from infra.audio.files import AudioError, AudioTooLong, NotAudio, UnreadableAudio, decode, encode, to_stereo_44k
from tests.source_examples import bursts, container


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    with Decoder() as decoder:
        yield decoder


@pytest.fixture(scope="module")
def long_flac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten minutes of near silence: about a second of decoding."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", samplerate=44_100, channels=2, format="FLAC", subtype="PCM_16") as file:
        block_NC = np.random.default_rng(0).integers(-2, 3, (44_100 * 10, 2)).astype(np.int16)
        for _ in range(60):
            file.write(block_NC)
    path = tmp_path_factory.mktemp("long") / "long.flac"
    path.write_bytes(buffer.getvalue())
    return path


class Killer(threading.Thread):
    """Sends a signal to the decoder's child as soon as it has worked for a while, for so many children."""

    def __init__(self, decoder: Decoder, how: signal.Signals, children: int) -> None:
        super().__init__(daemon=True)
        self.decoder, self.how, self.children = decoder, how, children
        self.killed: list[int] = []

    def run(self) -> None:
        until = time.monotonic() + 20
        while len(self.killed) < self.children and time.monotonic() < until:
            time.sleep(0.005)
            pid = self.decoder.pid
            try:
                # Starting takes about 0.2 s of its processor time.
                if pid and pid not in self.killed and sum(psutil.Process(pid).cpu_times()[:2]) > 0.5:
                    os.kill(pid, self.how)
                    self.killed.append(pid)
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue


def gone(pid: int, within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_a_child_gives_the_same_audio_from_a_path_and_from_bytes(decoder: Decoder, tmp_path: Path) -> None:
    stems = container([bursts(seed, 0.7) for seed in range(3)])
    files = {"song.wav": encode(bursts(0, 0.7)), "low.wav": encode(bursts(1, 0.5, 22_050), sample_rate_hz=22_050), "song.mp4": stems}
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        for stream in range(3 if name == "song.mp4" else 1):
            expected_CN = to_stereo_44k(decode(data, stream=stream))
            np.testing.assert_array_equal(decoder.decode(path, stream=stream), expected_CN)
            np.testing.assert_array_equal(decoder.decode(data, stream=stream), expected_CN)


def test_a_path_counts_from_where_the_caller_is(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    (tmp_path / name).write_bytes(encode(bursts(0, 0.1)))
    monkeypatch.chdir(tmp_path)
    assert decoder.decode(Path(name)).shape == (2, 4_410)


def test_errors_keep_their_class_and_text(decoder: Decoder, tmp_path: Path) -> None:
    wav = encode(bursts(0, 2.0))
    for data, kind in ((b"hello", NotAudio), (wav[:2_000], UnreadableAudio), (wav, AudioTooLong), (bytes(100), NotAudio)):
        with pytest.raises(kind) as here:
            decode(data, max_duration_s=1.0)
        with pytest.raises(kind) as there:
            decoder.decode(data, max_duration_s=1.0)
        assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))
    pid = decoder.pid
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav"):
        decoder.decode(tmp_path / "nowhere.wav")
    assert decoder.decode(wav).shape == (2, 88_200)
    assert decoder.pid == pid


def test_garbage_costs_its_own_error_only(decoder: Decoder) -> None:
    rng = np.random.default_rng(3)
    good = encode(bursts(0, 0.2))
    decoder.decode(good)
    pid = decoder.pid
    for start in (
        b"",
        b"fLaC",
        b"OggS",
        b"RIFF\xff\xff\xff\xffWAVEfmt ",
        b"\x00\x00\x00\x18ftypM4A ",
        b"\x1aE\xdf\xa3",
        b"\xff\xf1",
        b"\xff\xfb",
    ):
        with pytest.raises(AudioError):
            decoder.decode(start + rng.bytes(20_000))
    assert decoder.decode(good).shape == (2, 8_820)
    assert decoder.pid == pid


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_a_child_that_dies_once_is_replaced_and_the_file_decoded(decoder: Decoder, long_flac: Path, how: signal.Signals) -> None:
    killer = Killer(decoder, how, children=1)
    killer.start()
    assert decoder.decode(long_flac).shape == (2, 600 * 44_100)
    assert len(killer.killed) == 1
    assert decoder.pid not in (None, killer.killed[0])


def test_a_file_that_kills_every_child_is_one_error(decoder: Decoder, long_flac: Path) -> None:
    killer = Killer(decoder, signal.SIGSEGV, children=2)
    killer.start()
    with pytest.raises(DecoderCrashed, match=r"ended 2 times.*SIGSEGV.*export it again"):
        decoder.decode(long_flac.read_bytes())
    assert len(set(killer.killed)) == 2
    assert decoder.decode(encode(bursts(0, 0.1))).shape == (2, 4_410)


def test_a_child_killed_while_idle_costs_nothing(decoder: Decoder) -> None:
    data = encode(bursts(0, 0.1))
    decoder.decode(data)
    pid = decoder.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert decoder.decode(data).shape == (2, 4_410)


def test_a_file_that_takes_too_long_is_given_up(decoder: Decoder, tmp_path: Path, long_flac: Path) -> None:
    os.mkfifo(tmp_path / "endless.wav")  # opening it waits for a writer who never comes
    decoder.decode(encode(bursts(0, 0.1)))
    pid = decoder.pid
    assert pid
    with pytest.raises(DecoderTimeout, match=r"more than the 0.2 s allowed.*cut it"):
        decoder.decode(tmp_path / "endless.wav", timeout_s=0.2)
    assert gone(pid)
    with pytest.raises(DecoderTimeout):
        decoder.decode(long_flac, timeout_s=0.1)
    assert decoder.decode(encode(bursts(0, 0.1))).shape == (2, 4_410)


def many_blocks() -> bytes:
    """A FLAC of 25 million empty metadata blocks: seconds of a processor."""
    return b"fLaC\0\0\0\x22" + bytes([16, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0x0A, 0xC4, 0x42, 0xF0]) + bytes(20) + b"\x01\0\0\0" * 25_000_000


def test_a_file_that_takes_too_much_of_a_processor_is_given_up_at_once(decoder: Decoder, caplog: pytest.LogCaptureFixture) -> None:
    """However much time it is given, and without a second attempt."""
    short = encode(bursts(0, 0.1))
    for _ in range(3):
        assert decoder.decode(short, cpu_s=1.0).shape == (2, 4_410)
    pid = decoder.pid
    assert pid
    with pytest.raises(DecoderTimeout, match=r"more than the 0.5 s of a processor allowed.*cut it"):
        decoder.decode(many_blocks(), cpu_s=0.5)
    assert gone(pid)
    assert "attempt" not in caplog.text
    assert decoder.decode(short, cpu_s=1.0).shape == (2, 4_410)


def test_who_asks_may_end_it_while_it_works(decoder: Decoder) -> None:
    """Also one whose child neither works nor answers."""

    class LeftError(Exception):
        pass

    decoder.decode(encode(bursts(0, 0.1)))
    pid, looked = decoder.pid, 0
    assert pid
    os.kill(pid, signal.SIGSTOP)

    def look() -> None:
        nonlocal looked
        looked += 1
        if looked > 3:
            raise LeftError

    with pytest.raises(LeftError):
        decoder.decode(encode(bursts(0, 0.1)), look=look)
    assert gone(pid)
    assert decoder.decode(encode(bursts(0, 0.1))).shape == (2, 4_410)


def test_what_a_library_prints_of_a_crafted_file_floods_no_log(decoder: Decoder, capfd: pytest.CaptureFixture[str]) -> None:
    """libmpg123 has a line for every four bytes of this one."""
    with pytest.raises(AudioError):
        decoder.decode(b"\xff\xfb\x90\x00" + b"\xff\xfb\x00\x00" * 100_000)
    assert capfd.readouterr() == ("", "")


def test_few_files_are_decoded_at_a_time_and_who_waits_may_go_away() -> None:
    class LeftError(Exception):
        pass

    def leave() -> None:
        raise LeftError

    def stay() -> None:
        pass

    decoders = Decoders(2)
    with decoders.one(stay) as first, decoders.one(stay) as second:
        assert first is not second
        with pytest.raises(LeftError), decoders.one(leave):
            pytest.fail("a third")
    with decoders.one(stay) as one:
        assert one.decode(encode(bursts(0, 0.1))).shape == (2, 4_410)
        pid = one.pid
    decoders.close()
    assert pid
    assert gone(pid)


def test_a_decoder_that_died_has_a_successor_before_the_next_file_comes() -> None:
    decoders = Decoders(1)
    decoders.start()
    with decoders.one(lambda: None) as decoder:
        pid = decoder.pid
        with pytest.raises(DecoderTimeout):
            decoder.decode(many_blocks(), cpu_s=0.5)
        assert decoder.pid is None
    assert decoder.pid not in (None, pid)
    with decoders.one(lambda: None):
        decoders.close()
        assert decoder.pid
    assert decoder.pid is None


def test_an_interrupt_leaves_no_answer_for_the_next_file(decoder: Decoder, long_flac: Path) -> None:
    class StoppedError(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise StoppedError

    decoder.decode(encode(bursts(0, 0.1)))
    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(StoppedError):
            decoder.decode(long_flac)
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR1, before)
    assert decoder.decode(encode(bursts(0, 0.1))).shape == (2, 4_410)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux changes another process's limits")
def test_memory_is_limited_and_running_out_of_it_is_one_error(decoder: Decoder, long_flac: Path) -> None:
    short = encode(bursts(0, 0.1))
    decoder.decode(short)
    assert decoder.pid
    soft, hard = resource.prlimit(decoder.pid, resource.RLIMIT_AS)
    assert 4 * 2**30 < soft < 64 * 2**30
    mapped = psutil.Process(decoder.pid).memory_info().vms
    resource.prlimit(decoder.pid, resource.RLIMIT_AS, (mapped + 64 * 2**20, hard))
    with pytest.raises(DecoderCrashed, match="memory"):
        decoder.decode(long_flac)
    assert decoder.decode(short).shape == (2, 4_410)


def test_the_child_ends_with_its_parent() -> None:
    program = (
        "import os, sys\nfrom infra.audio.decoder import Decoder\nfrom infra.audio.files import encode\nimport numpy as np\n"
        "decoder = Decoder()\ndecoder.decode(encode(np.zeros((2, 99), np.float32)))\n"
        "os.write(1, str(decoder.pid).encode())\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert gone(int(done.stdout))


def test_close_ends_the_child_and_may_be_called_again() -> None:
    decoder = Decoder()
    decoder.close()
    decoder.decode(encode(bursts(0, 0.1)))
    pid = decoder.pid
    assert pid
    decoder.close()
    decoder.close()
    assert gone(pid)
    assert decoder.pid is None


def test_a_child_that_does_not_start_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Decoder() as decoder, pytest.raises(RuntimeError, match="does not start"):
        decoder.decode(encode(bursts(0, 0.1)))


def test_a_child_that_claims_gigabytes_is_not_given_them() -> None:
    tracemalloc.start()
    try:
        with (
            subprocess.Popen(["printf", r"\377\377\377\377"], stdout=subprocess.PIPE) as child,
            pytest.raises(_ChildDiedError),
        ):
            Decoder()._receive_message(child, time.monotonic() + 10)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
