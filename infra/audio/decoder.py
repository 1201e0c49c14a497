"""Decoding in a process that may die: a crafted file that crashes a native library, or eats all memory, costs one song and not the worker.

Shape legend: N samples.
"""

import errno
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from infra.audio.decoder_child import HEADER_BYTES, encode_message, write_all
from infra.audio.files import MAX_DURATION_S, SAMPLE_RATE_HZ, AudioError, AudioTooLong, NotAudio, UnreadableAudio

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
TIMEOUT_S = 600.0
# Headers of a file of 256 MiB take milliseconds once it is read.
PROBE_TIMEOUT_S = 60.0
ATTEMPTS = 2
MAX_HEADER_BYTES = 2**16
# How often who waits for a child looks whether it should go on waiting.
LOOK_EVERY_S = 0.05
ROOT = Path(__file__).resolve().parents[2]
_ERRORS = {kind.__name__: kind for kind in (AudioError, NotAudio, UnreadableAudio, AudioTooLong)}


class DecoderCrashed(AudioError):
    """The process that decoded the file died of it, more than once."""


class DecoderTimeout(AudioError):
    """The file was not decoded in the time that it may take; the process that decoded it was ended."""


class _ChildDiedError(Exception):
    """The child's end of a pipe is closed."""


def _go_on() -> None:
    """Nobody asks for an end."""


class Decoder:
    """One child process that decodes or probes one file after the other; it starts with the first file, and again after it died.

    Not for use by several threads at once: give each its own. A context manager; `close` ends the child.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._shared: FileIO | None = None
        self._look = _go_on

    @property
    def pid(self) -> int | None:
        """The running child's process id."""
        return self._child.pid if self._child and self._child.poll() is None else None

    def start(self) -> None:
        """Start the child now, where there is none, and not with the next file. Raises RuntimeError."""
        self._started()

    def decode(
        self,
        source: Path | bytes,
        *,
        stream: int = 0,
        max_duration_s: float = MAX_DURATION_S,
        timeout_s: float = TIMEOUT_S,
        cpu_s: float | None = None,
        look: Callable[[], None] = _go_on,
    ) -> NDArray[np.float32]:
        """(2, N) float32 at 44.1 kHz of one audio stream of a file; a local path is opened by the child, bytes are handed to it.

        `timeout_s` is for each of at most two attempts, from when the child is ready; `cpu_s`, rounded up, what the file may take of a
        processor, however busy the machine is. look: called while the child works; what it raises ends the child, and is raised.

        Raises: what `infra.audio.files.decode` and `to_stereo_44k` raise; OSError when the path cannot be read; DecoderCrashed;
        DecoderTimeout.
        """
        request = {
            "path": str(source.absolute()) if isinstance(source, Path) else None,
            "stream": stream,
            "max_duration_s": max_duration_s,
            "cpu_s": cpu_s,
        }
        self._look = look
        try:
            return self._ask(request, source, max_duration_s, timeout_s)[1]
        finally:
            self._look = _go_on

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
                if reason == signal.SIGXCPU.name:
                    raise DecoderTimeout(f"decoding takes more than the {request['cpu_s']:g} s of a processor allowed; cut it") from None
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
        assert self._shared is not None
        deadline = time.monotonic() + timeout_s
        self._shared.seek(0)
        write_all(self._shared, data)
        self._send(child, encode_message({**request, "bytes": len(data)}), deadline)
        header = self._receive_message(child, deadline)
        samples = int(header.get("samples", 0))
        # The child has held this limit already; a child that a file has taken over would not.
        if not 0 <= samples <= max_duration_s * SAMPLE_RATE_HZ + 1:
            raise _ChildDiedError
        received = np.empty(samples * 8, np.uint8)
        self._shared.seek(0)
        left = received.data
        while left:
            if not (got := self._shared.readinto(left)):
                raise _ChildDiedError
            left = left[got:]
        self._shared.truncate(0)
        return header, received.view(np.float32).reshape(2, samples)

    def _started(self) -> "subprocess.Popen[bytes]":
        """The child, ready for a file."""
        if self._child and self._child.poll() is None:
            return self._child
        if self._child:
            log.warning("the decoder ended (%s) while it had nothing to do; starting another", self._end())
        begun = time.monotonic()
        self._shared = _file_in_memory()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "infra.audio.decoder_child", str(self._shared.fileno())],
            cwd=ROOT,
            pass_fds=[self._shared.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # an interrupt at the terminal is for the parent, which ends the child
        )
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        try:
            self._receive_message(self._child, begun + START_TIMEOUT_S)
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
        if self._shared is not None:
            self._shared.close()
        return signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit status {child.returncode}"

    def _send(self, child: "subprocess.Popen[bytes]", data: bytes, deadline: float) -> None:
        assert child.stdin is not None
        left = memoryview(data)
        while left:
            self._wait(child.stdin.fileno(), select.POLLOUT, deadline)
            try:
                left = left[os.write(child.stdin.fileno(), left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise _ChildDiedError from error

    def _receive_message(self, child: "subprocess.Popen[bytes]", deadline: float) -> dict[str, Any]:
        text_bytes = int.from_bytes(self._receive(child, HEADER_BYTES, deadline), "little")
        if text_bytes > MAX_HEADER_BYTES:  # before so much is allocated
            raise _ChildDiedError
        message = json.loads(self._receive(child, text_bytes, deadline))
        assert isinstance(message, dict)
        return message

    def _receive(self, child: "subprocess.Popen[bytes]", wanted: int, deadline: float) -> bytes:
        assert child.stdout is not None
        received = b""
        while len(received) < wanted:
            self._wait(child.stdout.fileno(), select.POLLIN, deadline)
            try:
                got = os.read(child.stdout.fileno(), wanted - len(received))
            except BlockingIOError:
                continue
            if not got:
                raise _ChildDiedError
            received += got
        return received

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        while True:
            self._look()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            if poll.poll(min(left_s, LOOK_EVERY_S) * 1_000):
                return


def _file_in_memory() -> FileIO:
    """One without a name; where the system has none in memory (macOS), on disk."""
    if hasattr(os, "memfd_create"):
        return FileIO(os.memfd_create("decoder"), "r+")
    with tempfile.TemporaryFile(buffering=0) as file:
        return FileIO(os.dup(file.fileno()), "r+")


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
