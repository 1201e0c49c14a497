"""An accompaniment as the file that was asked for, whole or as it is made.

Shapes: C channels (2), N samples at 44.1 kHz.
"""

import io
import zipfile

import numpy as np

from infra.audio import files as audio_files
from model.dimensions import SAMPLE_RATE_HZ
from model.inference.gain import RunningGain, mix, within_full_scale
from serving.schema import AccompanimentRequest

# ZIP keeps a date for each file; a fixed one (the earliest that it can hold) makes equal answers equal bytes.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def render(vocal_CN: np.ndarray, accompaniment_CN: np.ndarray, request: AccompanimentRequest) -> bytes:
    """The file that the request wants; `kind_of` says what it is."""
    if request.output == "accompaniment":
        # It has the vocal's own level, which a mix can keep; alone it is turned down where it would clip.
        return audio_files.encode(within_full_scale(accompaniment_CN), request.format)
    mixed_vocal_CN, mixed_accompaniment_CN, mixture_CN = mix(vocal_CN, accompaniment_CN)
    if request.output == "mix":
        return audio_files.encode(mixture_CN, request.format)
    stems = {"vocal": mixed_vocal_CN, "accompaniment": mixed_accompaniment_CN, "mix": mixture_CN}
    return _zip({f"{name}.{request.format}": audio_files.encode(stem_CN, request.format) for name, stem_CN in stems.items()})


def kind_of(request: AccompanimentRequest) -> tuple[str, str]:
    """(media type, file name) of the answer."""
    if request.output == "stems":
        return "application/zip", "stems.zip"
    return audio_files.MIME_TYPES[request.format], f"{request.output}.{request.format}"


class StreamedFile:
    """The file of `render`, from pieces of the accompaniment: equal where nothing would clip, else turned down from there on."""

    def __init__(self, vocal_CN: np.ndarray, request: AccompanimentRequest) -> None:
        self._vocal_CN, self._mixes, self._at = vocal_CN, request.output == "mix", 0
        self._gain = RunningGain(SAMPLE_RATE_HZ)
        self._writer = audio_files.StreamWriter(request.format, vocal_CN.shape[1])

    def write(self, piece_CN: np.ndarray) -> bytes:
        """The bytes of the accompaniment's next piece (2, n)."""
        stop = self._at + piece_CN.shape[1]
        heard_CN = self._vocal_CN[:, self._at : stop] + piece_CN if self._mixes else piece_CN
        self._at = stop
        return self._writer.write(self._gain(heard_CN))

    def close(self) -> bytes:
        """The last bytes."""
        return self._writer.close()


def _zip(files: dict[str, bytes]) -> bytes:
    """Stored, not deflated: audio hardly shrinks, and a browser reads it without a library."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), data)
    return buffer.getvalue()
