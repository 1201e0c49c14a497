"""Applies demucs' networks to songs, chunk by chunk: many chunks of many songs at a time, and songs longer than memory.

Shapes: B batch, C channels, N samples, M networks of a bag, S sources of a network, K the two stems (vocal, accompaniment).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from model.codec.base import whole_float32
from model.dimensions import AUDIO_CHANNELS, SAMPLE_RATE_HZ
from model.errors import ModelError
from model.separation.chunks import Chunk, Network, Song, song_of

log = logging.getLogger(__name__)

VOCALS = "vocals"
# More chunks than this at a time fill any device; they only hold memory.
MOST_CHUNKS = 16
MEMORY_SHARE = 0.7


class SeparatorUnavailable(ModelError):
    """A separation network cannot be had, or cannot give a stereo vocal at 44.1 kHz."""


@dataclass(frozen=True, kw_only=True)
class SeparatorIdentity:
    """Which network separated a song: its name, and the SHA-256 of its weights and of what each counts for in a bag."""

    id: str
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class SeparatorConfig:
    """How a song is cut. `batch_chunks` is how many chunks go through the network at a time; None: one on a CPU, what fits on CUDA."""

    overlap: float = 0.25
    batch_chunks: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ModelError(f"overlap={self.overlap}; it must be at least 0 and under 1, demucs uses 0.25")
        if self.batch_chunks is not None and self.batch_chunks < 1:
            raise ModelError(f"batch_chunks={self.batch_chunks}; it must be 1 or more, or None for what fits")


@dataclass(frozen=True, kw_only=True)
class SeparatedStems:
    """(2, N) float32 each, at 44.1 kHz, not clipped; the accompaniment is the sum of all sources but the vocals."""

    vocal_CN: np.ndarray
    accompaniment_CN: np.ndarray


class Separator:
    """Separates songs as `demucs.separate --two-stems vocals --shifts 0` does, many chunks of many songs at a time.

    Shifts are 0: demucs can average several passes at random offsets, worth up to 0.2 dB by its own figure, but two runs would then differ,
    and each costs a whole pass.
    """

    def __init__(
        self, bag: Any, identity: SeparatorIdentity, *, device: str = "cpu", half: bool = False, config: SeparatorConfig | None = None
    ) -> None:
        """`bag` is demucs' BagOfModels, which is moved and set to eval (`model.separation.load.load_separator` makes one).

        `half`: float16 on CUDA with spectrograms and their inverse in float32; float32 elsewhere.
        Raises SeparatorUnavailable unless the bag gives vocals and other sources in stereo at 44.1 kHz.
        """
        check_contract(bag, identity.id)
        config = config or SeparatorConfig()
        self.identity = identity
        self.device = torch.device(device)
        self.half = half and self.device.type == "cuda"
        self.batch_chunks = config.batch_chunks or 1
        """How many chunks go at a time: halved for good where memory does not suffice."""
        self._fit_batch = config.batch_chunks is None and self.device.type == "cuda"
        self._others = len(bag.sources) - 1
        weights_MS = bag_weights(bag, identity.id)
        is_vocal_S = torch.tensor([source == VOCALS for source in bag.sources])
        self._networks = []
        for module, weights_S in zip(bag.models, weights_MS, strict=True):
            if not bool(weights_S.any()):
                continue
            module.to(self.device).eval().requires_grad_(False)
            if getattr(getattr(module, "crosstransformer", None), "sin_random_shift", 0):
                module.crosstransformer.sin_random_shift = 0  # drawn anew at every call, even in eval
            if self.half:
                _spectra_in_float32(module)
            stems_KS = torch.stack([weights_S * is_vocal_S, weights_S * ~is_vocal_S]).to(self.device, torch.float32)
            self._networks.append(Network(module, stems_KS, config.overlap))

    def separate(self, mixtures: Sequence[np.ndarray]) -> list[SeparatedStems]:
        """Mixtures (2, N) at 44.1 kHz, of any lengths → their stems, each as if it had been alone (within 1e-5).

        The songs and their stems stay in host memory, only a batch of chunks lies on the device. Raises ModelError on another shape, on
        NaN or infinite samples, and where one chunk does not fit into the device's memory.
        """
        songs = [song_of(mixture_CN, None) for mixture_CN in mixtures]
        stems = [np.zeros((2, AUDIO_CHANNELS, song.samples), np.float32) for song in songs]
        for network in self._networks:
            work = [(index, chunk) for index, song in enumerate(songs) for chunk in network.chunks(song.samples)]
            work.sort(key=lambda item: item[1].length)  # only chunks of one length make a batch
            for index, chunk, part_KCN in self._apply(network, songs, work):
                stems[index][..., chunk.start : chunk.stop] += part_KCN
        return [_stems(song.restored(stems_KCN, self._others)) for song, stems_KCN in zip(songs, stems, strict=True)]

    def stream(self, mixture: Any, *, samples: int | None = None) -> Iterator[tuple[int, SeparatedStems]]:
        """(start, stems of the samples from there) of one song in order, without gaps: what `separate` gives, in memory of a few chunks.

        `mixture` is an array (2, N) that is sliced as it is needed, such as np.memmap, or a function of (start, stop) that returns
        (2, stop − start), with `samples` = N. It is read twice: a first pass finds mean and deviation of the whole song, and chunks
        overlap. Raises what `separate` raises; on samples that are NaN or infinite before the first stretch.
        """
        return self._stream(mixture, samples)

    def _stream(self, mixture: Any, samples: int | None) -> Iterator[tuple[int, SeparatedStems]]:
        song = song_of(mixture, samples)
        waiting = [network.chunks(song.samples)[::-1] for network in self._networks]
        done = 0
        open_KCN = np.zeros((2, AUDIO_CHANNELS, 0), np.float32)  # the stretch from `done` on that chunks to come still add to
        while done < song.samples:
            at = min(range(len(waiting)), key=lambda one: waiting[one][-1].start if waiting[one] else song.samples)
            work = [(0, waiting[at].pop()) for _ in range(min(self.batch_chunks, len(waiting[at])))]
            missing = work[-1][1].stop - done - open_KCN.shape[2]
            open_KCN = np.pad(open_KCN, ((0, 0), (0, 0), (0, max(0, missing))))
            for _, chunk, part_KCN in self._apply(self._networks[at], [song], work):
                open_KCN[..., chunk.start - done : chunk.stop - done] += part_KCN
            final = min(chunks[-1].start if chunks else song.samples for chunks in waiting)
            if final > done:
                ready_KCN, open_KCN = open_KCN[..., : final - done].copy(), open_KCN[..., final - done :].copy()
                yield done, _stems(song.restored(ready_KCN, self._others))
                done = final

    def _apply(self, network: Network, songs: Sequence[Song], work: Sequence[tuple[int, Chunk]]) -> Iterator[tuple[int, Chunk, np.ndarray]]:
        """(song, chunk, its weighted part of both stems (2, 2, N)) for each of `work`, in batches of chunks of one length."""
        at = 0
        while at < len(work):
            length, most = work[at][1].length, 1 if self._fit_batch else self.batch_chunks
            group = [item for item in work[at : at + most] if item[1].length == length]
            read_BCN = np.stack([songs[index].normalised(chunk.read_start, chunk.read_stop) for index, chunk in group])
            try:
                stems_BKCN = self._forward(network, read_BCN)
            except torch.OutOfMemoryError as error:
                if len(group) == 1:
                    seconds = length / SAMPLE_RATE_HZ
                    raise ModelError(
                        f"separator {self.identity.id}: one chunk of {seconds:.1f} s does not fit into the memory of {self.device}; "
                        "free some, or separate on the CPU"
                    ) from error
                stems_BKCN = None
            if stems_BKCN is None:  # outside the handler, whose traceback still holds the batch
                self.batch_chunks = len(group) // 2
                log.warning("separator: %d chunks do not fit into memory; from here on %d at a time", len(group), self.batch_chunks)
                torch.cuda.empty_cache()
                continue
            for (index, chunk), stems_KCN in zip(group, stems_BKCN, strict=True):
                wanted = chunk.stop - chunk.start
                first = (stems_KCN.shape[-1] - wanted) // 2
                yield index, chunk, stems_KCN[..., first : first + wanted] * network.share(chunk, songs[index].samples)
            at += len(group)

    @torch.inference_mode()
    def _forward(self, network: Network, read_BCN: np.ndarray) -> np.ndarray:
        """(B, 2, N) → (B, K, 2, N) on the host; one call of the network."""
        batch_BCN = torch.from_numpy(read_BCN).to(self.device)
        before = self._begin_measure()
        with whole_float32(self.device):
            with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.half):
                sources_BSCN = network.module(batch_BCN)
            if self.half and not bool(torch.isfinite(sources_BSCN).all()):
                log.debug("separator: a batch overflows float16; again in float32")
                sources_BSCN = network.module(batch_BCN)
        stems_BKCN = torch.einsum("ks,bscn->bkcn", network.stems_KS, sources_BSCN.float())
        if before is not None:
            self._end_measure(before)
        return stems_BKCN.cpu().numpy()

    def _begin_measure(self) -> int | None:
        if not self._fit_batch:
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def _end_measure(self, before: int) -> None:
        """Sets the batch to what 70% of the free memory holds, by the peak of the first chunk alone."""
        need = max(1, torch.cuda.max_memory_allocated(self.device) - before)
        unused = torch.cuda.memory_reserved(self.device) - before
        free = torch.cuda.mem_get_info(self.device)[0] + unused
        self.batch_chunks = max(1, min(MOST_CHUNKS, int(MEMORY_SHARE * free / need)))
        self._fit_batch = False
        log.info("separator: %.2f GB a chunk, %d chunks at a time", need / 1e9, self.batch_chunks)


def _stems(stems_KCN: np.ndarray) -> SeparatedStems:
    return SeparatedStems(vocal_CN=stems_KCN[0], accompaniment_CN=stems_KCN[1])


def check_contract(bag: Any, model_id: str) -> None:
    if VOCALS not in bag.sources or len(bag.sources) < 2:
        raise SeparatorUnavailable(
            f"separator {model_id}: it gives {', '.join(bag.sources)}; choose a network that gives vocals and others"
        )
    if bag.samplerate != SAMPLE_RATE_HZ or bag.audio_channels != AUDIO_CHANNELS:
        raise SeparatorUnavailable(
            f"separator {model_id}: {bag.samplerate} Hz with {bag.audio_channels} channels; choose one of {SAMPLE_RATE_HZ} Hz stereo"
        )


def bag_weights(bag: Any, model_id: str) -> torch.Tensor:
    """(M, S) float64: what each network counts for in each source, summing to 1 over the bag."""
    weights_MS = torch.tensor(bag.weights, dtype=torch.float64)
    total_S = weights_MS.sum(dim=0)
    if not bool((total_S != 0).all()):
        raise SeparatorUnavailable(f"separator {model_id}: no network of the bag counts for one of its sources; mend the bag's weights")
    return weights_MS / total_S


def _spectra_in_float32(module: Any) -> None:
    """Takes the spectrogram and its inverse out of autocast: half precision has no complex transform worth hearing."""

    def outside(transform: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def whole(given: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
            with torch.autocast("cuda", enabled=False):
                return transform(given.to(torch.complex64 if given.is_complex() else torch.float32), *rest, **named)

        return whole

    for name in ("_spec", "_ispec"):
        if hasattr(module, name):
            setattr(module, name, outside(getattr(module, name)))
