"""Decoding in a process that may die: a crafted file that crashes a native library, or eats all memory, costs one song and not the worker.

Shape legend: N samples.
"""

import errno
import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from infra.audio.decoder_child import HEADER_BYTES, encode_header
from infra.audio.files import MAX_DURATION_S, SAMPLE_RATE_HZ, AudioError, AudioTooLong, NotAudio, UnreadableAudio

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
TIMEOUT_S = 600.0
# Headers of a file of 256 MiB take milliseconds once it is read.
PROBE_TIMEOUT_S = 60.0
ATTEMPTS = 2
# Linux's own 64 KiB cost a switch of processes for every 0.2 s of audio.
PIPE_BYTES = 2**20
MAX_HEADER_BYTES = 2**16
ROOT = Path(__file__).resolve().parents[2]
_ERRORS = {kind.__name__: kind for kind in (AudioError, NotAudio, UnreadableAudio, AudioTooLong)}


class DecoderCrashed(AudioError):
    """The process that decoded the file died of it, more than once."""


class DecoderTimeout(AudioError):
    """The file was not decoded in time; the process that decoded it was ended."""


class _ChildDiedError(Exception):
    """The child's end of a pipe is closed."""


class Decoder:
    """One child process that decodes or probes one file after the other; it starts with the first file, and again after it died.

    Not for use by several threads at once: give each its own. A context manager; `close` ends the child.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The running child's process id."""
        return self._child.pid if self._child and self._child.poll() is None else None

    def decode(
        self, source: Path | bytes, *, stream: int = 0, max_duration_s: float = MAX_DURATION_S, timeout_s: float = TIMEOUT_S
    ) -> NDArray[np.float32]:
        """(2, N) float32 at 44.1 kHz of one audio stream of a file; a local path is opened by the child, bytes are sent to it.

        `timeout_s` is for each of at most two attempts, from when the child is ready.

        Raises: what `infra.audio.files.decode` and `to_stereo_44k` raise; OSError when the path cannot be read; DecoderCrashed;
        DecoderTimeout.
        """
        request = {
            "path": str(source.absolute()) if isinstance(source, Path) else None,
            "stream": stream,
            "max_duration_s": max_duration_s,
        }
        return self._ask(request, source, max_duration_s, timeout_s)[1]

    def probe(self, path: Path, demuxer: str, *, timeout_s: float = PROBE_TIMEOUT_S) -> tuple[int, float | None]:
        """(audio streams, seconds that the header claims, if it does) of a file; nothing is decoded. `demuxer` is FFmpeg's.

        Raises: UnreadableAudio; OSError when the path cannot be read; DecoderCrashed; DecoderTimeout.
        """
        request = {"path": str(path.absolute()), "demuxer": demuxer}
        header, _ = self._ask(request, path, 0.0, timeout_s)
        duration_s = header["duration_s"]
        return int(header["streams"]), None if duration_s is None else float(duration_s)

    def _ask(
        self, request: dict[str, Any], source: Path | bytes, max_duration_s: float, timeout_s: float
    ) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """The child's answer, from as many children as may die of it; its errors are raised."""
        data = b"" if isinstance(source, Path) else source
        what = str(source) if isinstance(source, Path) else f"a file of {len(source)} bytes"
        reason = ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                header, audio_CN = self._exchange(request, data, max_duration_s, timeout_s)
                break
            except _ChildDiedError:
                reason = self._end()
                log.warning("the decoder ended (%s) while it decoded %s, attempt %d of %d", reason, what, attempt, ATTEMPTS)
            except TimeoutError as error:
                self._end(signal.SIGKILL)
                raise DecoderTimeout(
                    f"decoding took more than the {timeout_s:g} s allowed; the file may be crafted or the machine overloaded: "
                    f"export it again, or cut it"
                ) from error
            except BaseException:
                self._end(signal.SIGKILL)  # half an answer may be under way, which the next file must not get
                raise
        else:
            raise DecoderCrashed(
                f"the decoder ended {ATTEMPTS} times on this file ({reason}); it is damaged, or memory is short: export it again"
            )
        if kind := header.get("error"):
            raise _error(str(kind), header, source)
        return header, audio_CN

    def close(self) -> None:
        """End the child; the next `decode` would start another."""
        if self._child:
            self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _exchange(
        self, request: dict[str, Any], data: bytes, max_duration_s: float, timeout_s: float
    ) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """(the answer's header, the audio; without samples where the header holds an error)."""
        child = self._started()
        deadline = time.monotonic() + timeout_s
        _send(child, encode_header(request, len(data)), deadline)
        _send(child, data, deadline)
        header = _receive_header(child, deadline)
        samples = int(header.get("samples", 0))
        # The child has held this limit already; a child that a file has taken over would not.
        if header["bytes"] != samples * 8 or not 0 <= samples <= max_duration_s * SAMPLE_RATE_HZ + 1:
            raise _ChildDiedError
        received = np.empty(samples * 8, np.uint8)
        _receive(child, received.data, deadline)
        return header, received.view(np.float32).reshape(2, samples)

    def _started(self) -> "subprocess.Popen[bytes]":
        """The child, ready for a file."""
        if self._child and self._child.poll() is None:
            return self._child
        if self._child:
            log.warning("the decoder ended (%s) while it had nothing to do; starting another", self._end())
        begun = time.monotonic()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "infra.audio.decoder_child"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # an interrupt at the terminal is for the parent, which ends the child
        )
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            _enlarge(pipe.fileno())
        try:
            _receive_header(self._child, begun + START_TIMEOUT_S)
        except (_ChildDiedError, TimeoutError) as error:
            # No file is to blame, so this is no AudioError: with it every song of a dataset would be rejected.
            raise RuntimeError(f"the decoder's process does not start ({self._end(signal.SIGKILL)}); see what it wrote above") from error
        log.debug("decoder %d started in %.2f s", self._child.pid, time.monotonic() - begun)
        return self._child

    def _end(self, how: signal.Signals | None = None) -> str:
        """Forget the child, and say what it died of. One that only broke the protocol is killed."""
        child, self._child = self._child, None
        if child is None:
            return "it never started"
        if how is None:
            try:
                child.wait(1.0)  # its pipes close a moment before it can be waited for
            except subprocess.TimeoutExpired:
                how = signal.SIGKILL
        if how is not None:
            child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()
        return signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit status {child.returncode}"


def _error(kind: str, header: dict[str, Any], source: Path | bytes) -> Exception:
    """What the child raised, as its own class with its own text."""
    text = str(header["text"])
    if kind == "OSError":
        return OSError(header.get("errno") or errno.EIO, text, str(source) if isinstance(source, Path) else None)
    if kind == "MemoryError":
        return DecoderCrashed(
            f"decoding needs more than the {text} of memory allowed; the file is damaged or far too long: export it again"
        )
    return _ERRORS.get(kind, AudioError)(text)


def _send(child: "subprocess.Popen[bytes]", data: bytes, deadline: float) -> None:
    assert child.stdin is not None
    left = memoryview(data)
    while left:
        _wait(child.stdin.fileno(), select.POLLOUT, deadline)
        try:
            left = left[os.write(child.stdin.fileno(), left[:PIPE_BYTES]) :]
        except BlockingIOError:
            continue
        except BrokenPipeError as error:
            raise _ChildDiedError from error


def _receive_header(child: "subprocess.Popen[bytes]", deadline: float) -> dict[str, Any]:
    length = bytearray(HEADER_BYTES)
    _receive(child, memoryview(length), deadline)
    text_bytes = int.from_bytes(length, "little")
    if text_bytes > MAX_HEADER_BYTES:  # before so much is allocated
        raise _ChildDiedError
    text = bytearray(text_bytes)
    _receive(child, memoryview(text), deadline)
    header = json.loads(text)
    assert isinstance(header, dict)
    return header


def _receive(child: "subprocess.Popen[bytes]", into: memoryview, deadline: float) -> None:
    """Fill `into`."""
    assert child.stdout is not None
    while into:
        _wait(child.stdout.fileno(), select.POLLIN, deadline)
        try:
            got = os.readv(child.stdout.fileno(), [into])
        except BlockingIOError:
            continue
        if not got:
            raise _ChildDiedError
        into = into[got:]


def _wait(pipe: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    left_s = deadline - time.monotonic()
    if left_s <= 0 or not poll.poll(left_s * 1_000):
        raise TimeoutError


def _enlarge(pipe: int) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # a user's pipes are limited in sum; a small one only is slower
            log.debug("the decoder's pipe keeps its size")
