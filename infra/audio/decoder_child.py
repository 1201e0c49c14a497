"""The process that decodes for `infra.audio.decoder.Decoder`, and may die of what it decodes: python -m infra.audio.decoder_child.

Standard input and output carry messages: 4 bytes of length and a JSON object. Files and audio, of which there is much, lie in a file in
memory that both hold (its descriptor is the argument); the message says how many bytes of it count. The process ends when its input does.
"""

import json
import math
import os
import resource
import sys
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from infra.audio.containers import probe_container
from infra.audio.files import AudioError, decode, to_stereo_44k

# The largest audio that the limits let through takes 2.1 GiB. Counted on top of what the process has mapped when it starts: NumPy maps some
# 70 MB for each core.
MEMORY_LIMIT_BYTES = 4 * 2**30
HEADER_BYTES = 4


def main() -> None:
    """Answer requests until the input ends."""
    answers, shared = FileIO(os.dup(1), "w"), FileIO(int(sys.argv[1]), "r+")
    limit_memory(MEMORY_LIMIT_BYTES)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a file that crashes a library leaves no dump, with the vocal in it
    # What a native library prints must not land between the messages, and a crafted file makes it print a line for every few bytes.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  # a device, not a path
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    write_message(answers, {"ready": True})
    while (request := read_message(sys.stdin.buffer)) is not None:
        write_message(answers, answer(request, shared))


def answer(request: dict[str, Any], shared: FileIO) -> dict[str, Any]:
    """How many samples of audio, (2, N) float32 at 44.1 kHz, lie in `shared`; or the error that it
    ended with: its class's name and its text.

    With `demuxer` in the request nothing is decoded: the answer is how many audio streams that finds, and the seconds that it claims.
    """
    try:
        if request["path"] is not None:
            data = Path(request["path"]).read_bytes()
        else:
            shared.seek(0)
            data = shared.read(request["bytes"])
        if demuxer := request.get("demuxer"):
            streams, duration_s = probe_container(data, demuxer)
            return {"streams": streams, "duration_s": duration_s}
        limit_cpu(request["cpu_s"])
        audio = decode(data, stream=request["stream"], max_duration_s=request["max_duration_s"])
        del data
        stereo_CN = to_stereo_44k(audio)
        del audio
        shared.seek(0)
        write_all(shared, stereo_CN.data.cast("B"))
    except AudioError as error:
        return {"error": type(error).__name__, "text": str(error)}
    except OSError as error:
        return {"error": "OSError", "text": error.strerror or str(error), "errno": error.errno}
    except MemoryError:
        return {"error": "MemoryError", "text": f"{MEMORY_LIMIT_BYTES / 2**30:g} GiB"}
    return {"samples": stereo_CN.shape[1]}


def limit_cpu(seconds: float | None) -> None:
    """Let this process use so many seconds more of a processor; beyond them SIGXCPU ends it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = hard if seconds is None else math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def limit_memory(limit_bytes: int) -> None:
    """Let this process map so many bytes more than it has; where the system has no such limit, nothing happens."""
    mapped = 0
    with suppress(OSError):
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + limit_bytes
    with suppress(ValueError, OSError):  # macOS knows the name and refuses the value
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def read_message(stream: BinaryIO) -> dict[str, Any] | None:
    """None when the stream has ended, in the middle of a message too."""
    length = stream.read(HEADER_BYTES)
    text = stream.read(int.from_bytes(length, "little")) if len(length) == HEADER_BYTES else b""
    if not text:
        return None
    message: dict[str, Any] = json.loads(text)
    return message


def write_message(stream: FileIO, message: dict[str, Any]) -> None:
    """`stream` is not buffered."""
    write_all(stream, encode_message(message))


def write_all(stream: FileIO, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]


def encode_message(message: dict[str, Any]) -> bytes:
    """Length and JSON."""
    text = json.dumps(message).encode()
    return len(text).to_bytes(HEADER_BYTES, "little") + text


if __name__ == "__main__":
    main()
