"""The process that decodes for `infra.audio.decoder.Decoder`, and may die of what it decodes: python -m infra.audio.decoder_child.

Standard input and output carry messages: 4 bytes of length, a JSON header, and so many raw bytes as the header's `bytes` says. It ends
when its input does, so never outlives its parent.
"""

import json
import os
import resource
import sys
from contextlib import suppress
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
    # What a native library prints must not land between the messages.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    limit_memory(MEMORY_LIMIT_BYTES)
    write_message(answers, {"ready": True})
    while (request := read_message(sys.stdin.buffer)) is not None:
        header, data = request
        write_message(answers, *answer(header, data))


def answer(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes | memoryview]:
    """The audio, (2, N) float32 at 44.1 kHz, or the error that it ended with: its class's name and its text.

    With `demuxer` in the request nothing is decoded: the answer is how many audio streams that finds, and the seconds that it claims.
    """
    try:
        if header["path"] is not None:
            data = Path(header["path"]).read_bytes()
        if demuxer := header.get("demuxer"):
            streams, duration_s = probe_container(data, demuxer)
            return {"streams": streams, "duration_s": duration_s}, b""
        audio = decode(data, stream=header["stream"], max_duration_s=header["max_duration_s"])
        del data
        stereo_CN = to_stereo_44k(audio)
    except AudioError as error:
        return {"error": type(error).__name__, "text": str(error)}, b""
    except OSError as error:
        return {"error": "OSError", "text": error.strerror or str(error), "errno": error.errno}, b""
    except MemoryError:
        return {"error": "MemoryError", "text": f"{MEMORY_LIMIT_BYTES / 2**30:g} GiB"}, b""
    return {"samples": stereo_CN.shape[1]}, stereo_CN.data.cast("B")


def limit_memory(limit_bytes: int) -> None:
    """Let this process map so many bytes more than it has; where the system has no such limit, nothing happens."""
    mapped = 0
    with suppress(OSError):
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + limit_bytes
    with suppress(ValueError, OSError):  # macOS knows the name and refuses the value
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """(header, raw bytes); None when the stream has ended, in the middle of a message too."""
    length = stream.read(HEADER_BYTES)
    header = stream.read(int.from_bytes(length, "little")) if len(length) == HEADER_BYTES else b""
    if not header:
        return None
    fields = json.loads(header)
    data = stream.read(fields["bytes"])
    return (fields, data) if len(data) == fields["bytes"] else None


def write_message(stream: Any, header: dict[str, Any], data: bytes | memoryview = b"") -> None:
    """One message; `stream` is not buffered."""
    for part in (encode_header(header, len(data)), data):
        left = memoryview(part)
        while left:
            left = left[stream.write(left) :]


def encode_header(header: dict[str, Any], data_bytes: int) -> bytes:
    """Length and JSON of a message's header."""
    text = json.dumps({**header, "bytes": data_bytes}).encode()
    return len(text).to_bytes(HEADER_BYTES, "little") + text


if __name__ == "__main__":
    main()
