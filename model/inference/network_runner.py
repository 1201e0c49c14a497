"""How evaluations of the network are run: which of them together, on how many threads, captured or not.

Whatever is evaluated beside it, an evaluation's result has the same bits. Libraries choose how to sum by the shapes that they are given, so
an evaluation always runs in a batch of the same shape: alone on one of a CPU's threads, or in one slot of a full batch on an accelerator.

Shapes: B batch (slots), C channels, T frames.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.dimensions import SEGMENT_FRAMES
from model.errors import ModelError
from model.inference.cpu_network import PackedNetwork
from model.network.conditions import Conditions
from model.network.unet import AccompanimentUNet, VocalFeatures
from model.threads import one_thread_workers

# Lengths of window, of those asked for last, for which laid-out weights are kept at least, about 60 MB each; and as many as may be
# evaluated in one step.
PACKED_LENGTHS = 3

Execution = Literal["auto", "eager", "graph", "compile"]
"""eager: kernel by kernel (on a CPU from a recording, model/inference/cpu_network.py). graph: one CUDA graph for all kernels. compile:
torch.compile, and on CUDA a graph of what it made. auto: graph on CUDA, eager elsewhere; a fixed rule and no timing at run time, so that
one machine always gives the same bits."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """v̂ wanted of one window at one step under one condition."""

    x_CT: Tensor
    t: int
    vocal: VocalFeatures
    """Features of a batch of 1, from the evaluator that is asked."""


class Evaluator(ABC):
    """A network on its device. Any threads may `encode` while others ask for evaluations, `askers` of them."""

    slots: int
    """Evaluations that run at the same time; more are queued."""
    askers: int = 1
    """Threads that may ask at a time, and that keep it busy."""

    def __init__(self, unet: AccompanimentUNet) -> None:
        self.unet = unet
        self.device = unet.null_vocal_C.device

    @abstractmethod
    def encode(
        self, vocals_BCT: Sequence[Tensor | None], frames: int, conditions: Sequence[Conditions | None] | None = None
    ) -> list[VocalFeatures]:
        """Normalised vocal latents (1, 64, frames) → features; None stands for the null condition. conditions: what is given beside
        each, of as many frames."""

    @abstractmethod
    def __call__(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        """v̂ (C, T) of each, float32."""

    def warm_up(self) -> None:  # noqa: B027 (an evaluator may have nothing to do)
        """Does beforehand what the first evaluation would wait for, as far as that is the same for windows of all lengths."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of threads and device memory; it is not asked again."""


class ThreadedEvaluator(Evaluator):
    """CPU: each evaluation alone on one thread, as many at a time as there are threads. The network's weights must not change meanwhile.

    Guidance's two branches keep two cores busy, nothing waits at the barriers inside an operation (on a busy machine that is most of the
    time), and the bits are the same on any number of threads.
    """

    def __init__(self, unet: AccompanimentUNet, threads: int | None = None, *, execution: Execution = "auto") -> None:
        """threads: of this evaluator in all; by default torch's own number."""
        super().__init__(unet)
        threads = torch.get_num_threads() if threads is None else threads
        if threads < 1:
            raise ModelError(f"threads={threads}: must be at least 1; by default all that torch uses")
        if execution == "graph":
            raise ModelError("execution='graph': a CPU has no CUDA graphs; use auto, eager or compile")
        self.slots = threads
        self.askers = 2
        self._network = _network(unet, execution) if execution == "compile" else PackedNetwork(unet, lengths=max(PACKED_LENGTHS, threads))
        self._pool = one_thread_workers(threads, "denoise")

    def encode(
        self, vocals_BCT: Sequence[Tensor | None], frames: int, conditions: Sequence[Conditions | None] | None = None
    ) -> list[VocalFeatures]:
        given = conditions or [None] * len(vocals_BCT)
        return list(self._pool.map(lambda vocal_BCT, beside: self._encode(vocal_BCT, frames, beside), vocals_BCT, given))

    @torch.inference_mode()
    def _encode(self, vocal_BCT: Tensor | None, frames: int, conditions: Conditions | None) -> VocalFeatures:
        vocal_BCT = self.unet.null_vocal(frames) if vocal_BCT is None else vocal_BCT
        return self.unet.encode_vocal(vocal_BCT.contiguous(), conditions=conditions)

    def __call__(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        return list(self._pool.map(self._evaluate, evaluations))

    @torch.inference_mode()
    def _evaluate(self, evaluation: Evaluation) -> Tensor:
        # A copy: kernels may choose by the alignment of what they read.
        x_BCT = evaluation.x_CT.unsqueeze(0).clone(memory_format=torch.contiguous_format)
        return self._network(x_BCT, torch.tensor([evaluation.t]), evaluation.vocal)[0]

    def warm_up(self) -> None:
        if isinstance(self._network, PackedNetwork):
            self._pool.submit(self._network.record).result()  # on one thread, as it will run

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def _network(unet: AccompanimentUNet, execution: Execution) -> Callable[[Tensor, Tensor, VocalFeatures], Tensor]:
    # dynamic=False: a kernel for each shape, so that the bits of one length do not depend on which lengths came before it
    return torch.compile(unet, dynamic=False) if execution == "compile" else unet


@dataclass(kw_only=True)
class _Batch:
    """Inputs and outputs at fixed addresses for one number of frames, and what runs the network from the ones to the others."""

    x_BCT: Tensor
    t_B: Tensor
    vocal: VocalFeatures
    run: Callable[[], Tensor]
    occupants: list[VocalFeatures | None] = field(default_factory=list)


class BatchedEvaluator(Evaluator):
    """Accelerators: evaluations in the slots of one batch whose shape never changes, replayed as a CUDA graph.

    Windows are padded to one of few lengths (padding is masked, and exact up to rounding), so that there are few graphs. An empty slot
    holds what was last in it. The features of a window are copied into its slot once, not at every step.
    """

    def __init__(
        self,
        unet: AccompanimentUNet,
        slots: int = 32,
        *,
        lengths: Sequence[int] = (SEGMENT_FRAMES // 8, SEGMENT_FRAMES // 4, SEGMENT_FRAMES // 2, SEGMENT_FRAMES),
        execution: Execution = "auto",
        bfloat16: bool | None = None,
    ) -> None:
        """slots: guided evaluations take two. bfloat16: autocast; by default on CUDA devices that compute with it."""
        super().__init__(unet)
        is_cuda = self.device.type == "cuda"
        if slots < 1 or slots & (slots - 1):
            # Libraries cut a batch into parts of such sizes; in 6 slots (and no power of two) the bits depended on the slot.
            raise ModelError(f"slots={slots}: must be a power of two; 32 hold 16 guided candidates")
        if execution == "graph" and not is_cuda:
            raise ModelError(f"execution='graph': {self.device} has no CUDA graphs; use auto, eager or compile")
        self.slots, self.lengths = slots, sorted(lengths)
        self.bfloat16 = is_cuda and torch.cuda.is_bf16_supported(including_emulation=False) if bfloat16 is None else bfloat16
        self._graphs = is_cuda and execution != "eager"
        self._network = _network(unet, execution)
        self._batches: dict[int, _Batch] = {}
        self._lock = threading.Lock()

    def _padded(self, frames: int) -> int:
        length = next((length for length in self.lengths if length >= frames), None)
        if length is None:
            raise ModelError(f"a window of {frames} frames: this evaluator takes {self.lengths[-1]} at most")
        return length

    @torch.inference_mode()
    def encode(
        self, vocals_BCT: Sequence[Tensor | None], frames: int, conditions: Sequence[Conditions | None] | None = None
    ) -> list[VocalFeatures]:
        length = self._padded(frames)
        valid_BT = (torch.arange(length, device=self.device) < frames)[None]
        found = []
        for vocal_BCT, beside in zip(vocals_BCT, conditions or [None] * len(vocals_BCT), strict=True):
            vocal_BCT = self.unet.null_vocal(frames) if vocal_BCT is None else vocal_BCT.to(self.device)
            beside = None if beside is None else beside.window(0, length)
            with self._lock, self._autocast():
                found.append(self.unet.encode_vocal(F.pad(vocal_BCT, (0, length - frames)), valid_BT, conditions=beside))
        return found

    @torch.inference_mode()
    def __call__(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for length in self.lengths:
            those = [index for index, evaluation in enumerate(evaluations) if evaluation.vocal.frames == length]
            for first in range(0, len(those), self.slots):
                part = those[first : first + self.slots]
                with self._lock:
                    v_BCT = self._run(length, [evaluations[index] for index in part])
                found |= {index: v_CT[:, : evaluations[index].x_CT.shape[1]] for index, v_CT in zip(part, v_BCT, strict=False)}
        return [found[index] for index in range(len(evaluations))]

    def close(self) -> None:
        self._batches.clear()  # what runs a batch holds this evaluator in turn

    def _run(self, length: int, evaluations: Sequence[Evaluation]) -> Tensor:
        batch = self._batches.get(length)
        if batch is None:
            batch = self._batches[length] = self._prepare(length, evaluations[0].vocal)
        for slot, evaluation in enumerate(evaluations):
            if batch.occupants[slot] is not evaluation.vocal:
                for mine, theirs in zip(batch.vocal.tensors(), evaluation.vocal.tensors(), strict=True):
                    mine[slot].copy_(theirs[0])
                batch.occupants[slot] = evaluation.vocal
            batch.x_BCT[slot].zero_()[:, : evaluation.x_CT.shape[1]].copy_(evaluation.x_CT)
        batch.t_B[: len(evaluations)].copy_(torch.tensor([evaluation.t for evaluation in evaluations]))
        return batch.run().clone()

    def _prepare(self, length: int, like: VocalFeatures) -> _Batch:
        channels = self.unet.config.latent_channels
        x_BCT = torch.zeros(self.slots, channels, length, device=self.device)
        t_B = torch.zeros(self.slots, dtype=torch.long, device=self.device)
        vocal = like.map(lambda value: value.expand(self.slots, *value.shape[1:]).clone())

        def run() -> Tensor:
            with self._autocast():
                return self._network(x_BCT, t_B, vocal).float()

        if self._graphs:
            run = _captured(run, self.device)
        return _Batch(x_BCT=x_BCT, t_B=t_B, vocal=vocal, run=run, occupants=[None] * self.slots)

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        # No cache: casts that one capture made would be read by graphs that know nothing of when they are freed.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if self.bfloat16 else nullcontext()


def _captured(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """One CUDA graph of a function whose inputs stay where they are; its result is overwritten by the next call."""
    with torch.cuda.device(device):  # streams and graphs belong to the current device, which need not be the network's
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries choose kernels and allocate workspaces in their first calls, which a capture forbids
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do on the device meanwhile, codecs and copies, is no fault of the capture
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = run()

    def replay() -> Tensor:
        with torch.cuda.device(device):
            graph.replay()
        return result

    return replay


def evaluator_for(unet: AccompanimentUNet, *, execution: Execution = "auto") -> Evaluator:
    """The evaluator of the network's device."""
    if unet.null_vocal_C.device.type == "cpu":
        return ThreadedEvaluator(unet, execution=execution)
    return BatchedEvaluator(unet, execution=execution)
