"""Embeddings of audio for distribution distances: a weight-free one for smoke tests, the codec's latents, musicnn and CLAP.

Shapes: C channels, N samples, R windows, D dimensions, F bands, T frames, P pitch classes.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from model.codec.base import Codec
from model.dimensions import FRAME_RATE_HZ, LATENT_CHANNELS, SAMPLE_RATE_HZ
from model.listen import CHROMA_RATE_HZ, ONSET_RATE_HZ, chroma, mono
from model.listen.rhythm import onset_bands
from model.listen.spectrum import magnitudes, mel_matrix
from model.metrics.embedding import Embedding, EmbeddingUnavailable
from model.metrics.musicnn import load_musicnn

log = logging.getLogger(__name__)

SPECS = "auto, smoke, codec, clap, musicnn:FILE, or the folder or hub name of a CLAP model"
MUSICNN = "musicnn:"
WINDOW_S = 1.0
_WINDOW_SAMPLES, _HOP_SAMPLES, _BANDS = 2_048, 1_024, 32
# 80 dB below full scale is silence; a step of 20 dB is about as large as the spread of a band within a song.
_FLOOR, _DECIBELS = 1e-4, 20.0


class SmokeEmbedding:
    """Statistics of what is heard in each second: it tells noise from music and one sound from another, and knows no taste.

    A window's 88 values: mean and deviation over time of 32 mel bands in units of 20 dB (64); chroma turned to its strongest class (12);
    mean, deviation and logarithm of the peak of the onset strength below 0.4, up to 2.9 and above 2.9 kHz (9); loudness, flatness, and
    share of the power that is the side's (3). Constants bring each group to the spread of the bands in the demo corpus, about 0.3.
    """

    name = "smoke"
    note = "weight-free statistics of mel bands, chroma and onsets; a smoke test, whose figures compare only within this project"
    dimension = 2 * _BANDS + 12 + 9 + 3
    window_s = WINDOW_S

    def embed(self, audio_CN: np.ndarray) -> np.ndarray:
        audio_CN = np.atleast_2d(np.asarray(audio_CN, dtype=np.float32))
        mono_N = mono(audio_CN)
        magnitude_FT = magnitudes(mono_N, window_samples=_WINDOW_SAMPLES, hop_samples=_HOP_SAMPLES)
        band_FT = 20 * np.log10(mel_matrix(_WINDOW_SAMPLES, _BANDS) @ magnitude_FT + _FLOOR) / _DECIBELS
        power_FT = np.square(magnitude_FT, dtype=np.float64) + _FLOOR**2
        flat_T = np.exp(np.log(power_FT).mean(axis=0)) / power_FT.mean(axis=0)
        side_N = (audio_CN[0] - audio_CN[-1]) / 2
        count, frame_hz = whole_windows(audio_CN), SAMPLE_RATE_HZ / _HOP_SAMPLES
        parts = (
            cut(band_FT, frame_hz, count),
            cut(chroma(mono_N), CHROMA_RATE_HZ, count),
            cut(onset_bands(mono_N), ONSET_RATE_HZ, count),
            cut(flat_T[None], frame_hz, count),
            cut(np.square(np.stack([mono_N, side_N])), SAMPLE_RATE_HZ, count),
        )
        return np.stack([self._window(*window) for window in zip(*parts, strict=True)])

    @staticmethod
    def _window(band_FT: np.ndarray, chroma_PT: np.ndarray, rise_FT: np.ndarray, flat_T: np.ndarray, power_CN: np.ndarray) -> np.ndarray:
        middle, side = power_CN.mean(axis=1, dtype=np.float64)
        return np.concatenate(
            [
                band_FT.mean(axis=1),
                2 * band_FT.std(axis=1),
                5 * _turned(chroma_PT.mean(axis=1)),
                10 * rise_FT.mean(axis=1),
                3 * rise_FT.std(axis=1),
                np.log1p(rise_FT.max(axis=1)),
                [10 * np.log10(middle + _FLOOR**2) / _DECIBELS, 5 * flat_T.mean(), 5 * side / (side + middle + _FLOOR**2)],
            ]
        )


class CodecEmbedding:
    """Mean and deviation of the codec's latent channels in each second: what the codec's own training found worth keeping."""

    dimension = 2 * LATENT_CHANNELS
    window_s = WINDOW_S

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.name = f"codec {codec.identity.id}"
        self.note = (
            f"mean and deviation of the latents of codec {codec.identity.id} ({codec.identity.weights_sha256[:8]}); "
            "figures compare only within this codec"
        )

    def embed(self, audio_CN: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            latent_CT = self._codec.encode(torch.from_numpy(np.ascontiguousarray(audio_CN, dtype=np.float32))[None])[0].cpu().numpy()
        parts = cut(latent_CT, FRAME_RATE_HZ, whole_windows(audio_CN))
        return np.stack([np.concatenate([part.mean(axis=1), part.std(axis=1)]) for part in parts])


def load_embedding(spec: str, *, codec: Codec, device: str = "cpu") -> Embedding:
    """An embedding by name: smoke, codec, clap (the hub's), a folder or hub name of a CLAP model, auto (clap where it can be had), or
    musicnn: with the file of its weights.

    Raises EmbeddingUnavailable, whose message says what to install or name.
    """
    if spec == "smoke":
        return SmokeEmbedding()
    if spec == "codec":
        return CodecEmbedding(codec)
    if spec.startswith(MUSICNN):
        return load_musicnn(spec.removeprefix(MUSICNN), device=device)
    from model.metrics.clap import HUB_MODEL, load_clap

    if spec == "auto":
        try:
            return load_clap(HUB_MODEL, device=device)
        except EmbeddingUnavailable as error:
            log.warning("embedding auto: taking smoke, because %s", error)
            smoke = SmokeEmbedding()
            smoke.note = f"{smoke.note}; taken for auto because {str(error).partition(';')[0]}"
            return smoke
    if spec != "clap" and "/" not in spec and not Path(spec).is_dir():
        raise EmbeddingUnavailable(f"embedding {spec!r} is not known: give {SPECS}")
    return load_clap(HUB_MODEL if spec == "clap" else spec, device=device)


def whole_windows(audio_CN: np.ndarray) -> int:
    return max(1, int(audio_CN.shape[-1] / (WINDOW_S * SAMPLE_RATE_HZ)))


def cut(curve_FT: np.ndarray, rate_hz: float, count: int) -> list[np.ndarray]:
    """`count` windows of WINDOW_S, of one frame at least."""
    starts = [min(round(index * WINDOW_S * rate_hz), curve_FT.shape[1] - 1) for index in range(count)]
    return [curve_FT[:, start : max(start + 1, round((index + 1) * WINDOW_S * rate_hz))] for index, start in enumerate(starts)]


def _turned(chroma_P: np.ndarray) -> np.ndarray:
    """Shares of the pitch classes above the strongest one: a distance must not hear that two songs have different keys."""
    total = chroma_P.sum()
    return np.roll(chroma_P, -int(chroma_P.argmax())) / total if total > 0 else chroma_P
