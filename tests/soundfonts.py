"""A small soundfont, written as its bytes (SoundFont 2.04): every preset plays one decaying tone, drum kits a burst."""

import struct
from collections.abc import Iterable

import numpy as np

_RATE_HZ = 44_100


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def soundfont(presets: Iterable[tuple[int, int]], *, modulators: int = 0) -> bytes:
    """A font with these (bank, program) pairs; `modulators` are idle ones, for fonts that ask for a player of them."""
    t = np.arange(int(0.4 * _RATE_HZ)) / _RATE_HZ
    tone = sum(np.sin(2 * np.pi * 261.63 * k * t) / k for k in (1, 2, 3, 5)) * np.exp(-3 * t) * 0.4
    pcm = (tone * 32767).astype("<i2").tobytes() + b"\0" * 92
    rows = sorted(presets)
    phdr = b"".join(
        struct.pack("<20sHHHIII", f"preset {bank}:{program}".encode(), program, bank, i, 0, 0, 0) for i, (bank, program) in enumerate(rows)
    )
    phdr += struct.pack("<20sHHHIII", b"EOP", 0, 0, len(rows), 0, 0, 0)
    pbag = b"".join(struct.pack("<HH", i, 0) for i in range(len(rows) + 1))
    pgen = struct.pack("<HH", 41, 0) * len(rows) + struct.pack("<HH", 0, 0)
    end = struct.pack("<20sIIIIIBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    sample = struct.pack("<20sIIIIIBbHH", b"tone", 0, t.size, 8, t.size - 8, _RATE_HZ, 60, 0, 0, 1)
    pdta = b"pdta" + b"".join(
        chunk(name, data)
        for name, data in (
            (b"phdr", phdr), (b"pbag", pbag), (b"pmod", b"\0" * 10), (b"pgen", pgen),
            (b"inst", struct.pack("<20sH20sH", b"one", 0, b"EOI", 1)), (b"ibag", struct.pack("<HHHH", 0, 0, 1, modulators)),
            (b"imod", b"\0" * 10 * (modulators + 1)), (b"igen", struct.pack("<HHHH", 53, 0, 0, 0)), (b"shdr", sample + end),
        )
    )  # fmt: skip
    info = b"INFO" + chunk(b"ifil", struct.pack("<HH", 2, 4)) + chunk(b"isng", b"EMU8000\0") + chunk(b"INAM", b"small\0")
    body = b"sfbk" + chunk(b"LIST", info) + chunk(b"LIST", b"sdta" + chunk(b"smpl", pcm)) + chunk(b"LIST", pdta)
    return b"RIFF" + struct.pack("<I", len(body)) + body
