"""Files in, files out, around an engine that takes and gives arrays. What is wrong with a file is found here, and costs the engine nothing.

Shapes: C channels (2), N samples at 44.1 kHz.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np

from infra.audio.decoders import Decoders
from model.dimensions import SAMPLE_RATE_HZ
from serving.engine.engine import Band, Call, Engine
from serving.engine.output_files import StreamedFile, kind_of, render
from serving.observe import tracing
from serving.schema import AccompanimentRequest, AccompanimentResult, StageSeconds

# Ten minutes in six channels take 2 GB for a moment while they are decoded.
DECODED_AT_A_TIME = 2
# Ten minutes of FLAC at 96 kHz take 7 s.
DECODING_CPU_S = 30.0


class Door:
    """For any threads. `decoders` belong to whoever gives them."""

    def __init__(self, engine: Engine, decoders: Decoders) -> None:
        self.engine, self._decoders = engine, decoders

    def generate(self, vocal: bytes, request: AccompanimentRequest, call: Call | None = None) -> AccompanimentResult:
        """`Engine.generate` for an audio file; raises AudioError where it cannot be used, and what that raises."""
        (result,) = self.play(vocal, request.model_copy(update={"stream": False}), call or Call())
        assert isinstance(result, AccompanimentResult)
        return result

    def play(self, vocal: bytes, request: AccompanimentRequest, call: Call) -> Iterator[AccompanimentResult | bytes]:
        """`Engine.play` for an audio file: a result, with the whole file or its beginning and `more`, then bytes."""
        self.engine.check(request)
        vocal_CN, before = self._decoded(vocal, call)
        with closing(self.engine.play(vocal_CN, request, call)) as pieces:
            band = next(pieces)
            assert isinstance(band, Band)
            file = StreamedFile(vocal_CN, request) if band.more else None
            since_s = time.monotonic()
            audio = render(vocal_CN, band.audio_CN, request) if file is None else file.write(band.audio_CN)
            rendered_s = time.monotonic() - since_s
            tracing.passed("render", since_s, since_s + rendered_s)
            made, (media_type, file_name) = band.stages, kind_of(request)
            yield AccompanimentResult(
                audio=audio,
                more=band.more,
                media_type=media_type,
                file_name=file_name,
                model=self.engine.accompanist.checkpoint.name,
                seed=band.seed,
                fit=band.fit,
                candidate_fits=band.candidate_fits,
                duration_s=vocal_CN.shape[1] / SAMPLE_RATE_HZ,
                # The codec's own decoding is rendering too, as a listener sees it.
                stages=replace(made, queue=made.queue + before.queue, decode=before.decode, render=made.render + rendered_s),
            )
            if file is None:
                return
            for piece_CN in pieces:
                assert isinstance(piece_CN, np.ndarray)
                if data := file.write(piece_CN):
                    yield data
            if data := file.close():
                yield data

    def _decoded(self, vocal: bytes, call: Call) -> tuple[np.ndarray, StageSeconds]:
        """(vocal_CN, what waiting and decoding took). Cancelled or late, it ends where it is, also in the middle of a file."""
        asked_s = time.perf_counter()
        with self._decoders.one(call.look) as decoder, tracing.span("decode"):
            began_s = time.perf_counter()
            longest_s = self.engine.config.max_duration_s
            vocal_CN = decoder.decode(vocal, max_duration_s=longest_s, cpu_s=DECODING_CPU_S, look=call.look)
            return vocal_CN, StageSeconds(queue=began_s - asked_s, decode=time.perf_counter() - began_s)
