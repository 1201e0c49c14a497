"""Songs longer than a window: the cut, the handover, the noise, and lanes against one evaluation of everything at once."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.diffusion.objective import Schedule
from model.diffusion.sampling import SamplerConfig, guide, sample
from model.inference.network_runner import Evaluation, Evaluator, ThreadedEvaluator
from model.inference.windows import NOISE_WINDOW_FRAMES, Lane, Window, denoise, handover, noise, noise_stream, windows
from model.network.conditions import Conditions
from model.network.unet import AccompanimentUNet, UNetConfig, VocalFeatures
from tests.examples import examples

NETWORK = UNetConfig(channels=(16, 32), vocal_blocks=(1, 1), heads=2, head_channels=16, time_channels=32, bottleneck_blocks=1)
SCHEDULE = Schedule()


@pytest.fixture(scope="module")
def unet() -> AccompanimentUNet:
    torch.manual_seed(0)
    unet = AccompanimentUNet(NETWORK).eval().requires_grad_(False)
    torch.nn.init.normal_(unet.output.weight, std=0.05)
    torch.nn.init.normal_(unet.null_vocal_C)
    return unet


@pytest.fixture(scope="module")
def evaluator(unet: AccompanimentUNet) -> ThreadedEvaluator:
    return ThreadedEvaluator(unet, threads=2)


@given(frames=st.integers(1, 3_000), longest=st.integers(2, 160), share=st.floats(0.05, 0.95))
@settings(max_examples=examples(300))
def test_windows_cover_a_song_and_settle_each_frame_once(frames: int, longest: int, share: float) -> None:
    overlap = min(max(1, int(longest * share)), longest - 1)
    found = windows(frames, longest, overlap)
    assert found[0].start == 0
    assert found[0].shared == 0
    assert found[-1].start + found[-1].frames == frames
    assert sum(window.settled for window in found) == frames
    assert all(0 < window.frames <= longest for window in found)
    opening, *rest = [window.frames for window in found]
    assert len(set(rest)) <= 1
    assert opening == (longest // 2 if frames > 3 * longest and longest // 2 > overlap else found[-1].frames)
    for former, window in pairwise(found):
        assert window.start == former.start + former.settled
        assert window.shared == former.start + former.frames - window.start
        assert window.shared >= overlap


def test_windows_of_the_method() -> None:
    assert windows(1_024, 1_024, 256) == [Window(start=0, frames=1_024, shared=0, settled=1_024)]
    assert windows(1_025, 1_024, 256) == [
        Window(start=0, frames=648, shared=0, settled=377),
        Window(start=377, frames=648, shared=271, settled=648),
    ]
    ten_minutes = windows(12_920, 1_024, 256)
    assert ten_minutes[0] == Window(start=0, frames=512, shared=0, settled=256)
    assert len(ten_minutes) == 18  # 1 + (12,664 − 256) / 768, rounded up: cost grows with length, nothing is done twice but the overlap


def test_an_early_start_costs_six_percent_at_most() -> None:
    for frames in range(3 * 1_024 + 1, 12_920, 7):
        evaluated = sum(window.frames for window in windows(frames, 1_024, 256))
        assert evaluated <= 1.06 * (frames + 256 * -(-(frames - 256) // 768) + 8 * 17)


@given(shared=st.integers(1, 300), slope=st.integers(1, 300))
def test_the_former_window_hands_over_gently(shared: int, slope: int) -> None:
    share_T = handover(shared, slope)
    assert share_T.shape == (shared,)
    assert torch.equal(share_T[: max(shared - slope, 0)], torch.ones(max(shared - slope, 0)))
    assert bool((share_T.diff() <= 0).all())
    assert bool((share_T >= 0).all())
    assert float(share_T[-1]) <= 0.5


def test_noise_belongs_to_a_place() -> None:
    """Frames that two windows share have the same noise in every draw, and so has a longer song's beginning."""
    whole, late, short = noise(5, 1, 0, 2_500), noise(5, 1, 900, 1_024), noise(5, 1, 0, 700)
    for _ in range(3):
        drawn = next(whole)
        assert torch.equal(next(late), drawn[:, :, 900:1_924])
        assert torch.equal(next(short), drawn[:, :, :700])
    first, again = next(noise(5, 1, 0, 50)), next(noise(5, 1, 0, 50))
    assert torch.equal(first, again)
    assert not torch.equal(first, next(noise(5, 2, 0, 50)))
    assert not torch.equal(first, next(noise(6, 1, 0, 50)))
    keys = {(seed, candidate, window) for seed in range(5) for candidate in range(5) for window in range(5)}
    assert len({noise_stream(*key).initial_seed() for key in keys}) == len(keys)
    assert NOISE_WINDOW_FRAMES == 1_024  # part of what a seed means: changing it changes every request's audio


def lane(
    evaluator: Evaluator,
    vocal_BCT: Tensor,
    cut: list[Window],
    *,
    seed: int,
    solver: str = "dpmpp-2m",
    guidance: float = 2.0,
    slope: int = 4,
) -> Lane:
    def condition(window: Window) -> tuple[VocalFeatures, VocalFeatures | None]:
        heard_BCT = vocal_BCT[:, :, window.start : window.start + window.frames]
        features, null = evaluator.encode([heard_BCT, None], window.frames)
        return features, None if guidance == 1 else null

    return Lane(
        windows=cut,
        slope=slope,
        condition=condition,
        draw=lambda window: noise(seed, 0, window.start, window.frames),
        schedule=SCHEDULE,
        sampler=SamplerConfig(solver=solver, steps=4),
        guidance=guidance,
        rescale=0.7,
    )


def vocal(frames: int) -> Tensor:
    return torch.randn(1, 64, frames, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddim", "ancestral"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_lane_of_one_window_is_the_sampler(unet: AccompanimentUNet, evaluator: ThreadedEvaluator, solver: str, guidance: float) -> None:
    vocal_BCT = vocal(40)
    settled = list(denoise([lane(evaluator, vocal_BCT, windows(40, 64, 16), seed=3, solver=solver, guidance=guidance)], evaluator))
    features, null = unet.encode_vocal(vocal_BCT), unet.encode_vocal(unet.null_vocal(40))
    draws = noise(3, 0, 0, 40)

    def denoiser(x_BCT: Tensor, t_B: Tensor) -> Tensor:
        conditional_BCT = unet(x_BCT, t_B, features)
        return conditional_BCT if guidance == 1 else guide(conditional_BCT, unet(x_BCT, t_B, null), guidance=guidance, rescale=0.7)

    wanted = sample(denoiser, next(draws), SCHEDULE, SamplerConfig(solver=solver, steps=4), fresh_noise=lambda: next(draws))
    assert len(settled) == 1
    torch.testing.assert_close(settled[0][1], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddim", "ancestral"])
def test_windows_agree_where_they_overlap(evaluator: ThreadedEvaluator, solver: str) -> None:
    """With the whole overlap given to the former window, both have the same frames there at the end, whatever follows."""
    vocal_BCT = vocal(80)
    cut = windows(80, 48, 16)
    assert len(cut) == 2
    first, second = (piece for _, piece in denoise([lane(evaluator, vocal_BCT, cut, seed=3, solver=solver, slope=1)], evaluator))
    alone = [Window(start=0, frames=cut[0].frames, shared=0, settled=cut[0].frames)]
    ((_, whole),) = denoise([lane(evaluator, vocal_BCT, alone, seed=3, solver=solver)], evaluator)
    assert torch.equal(first, whole[:, :, : cut[0].settled])
    pinned = cut[1].shared - 1  # the last shared frame is half the new window's
    torch.testing.assert_close(second[:, :, :pinned], whole[:, :, cut[0].settled :][:, :, :pinned], rtol=1e-4, atol=1e-4)
    assert second.shape[2] == cut[1].settled


def test_the_new_window_hears_what_it_is_given(evaluator: ThreadedEvaluator) -> None:
    """Frames beyond the overlap depend on the former window's: it is a continuation, not a second beginning."""
    vocal_BCT = vocal(80)
    other_BCT = vocal_BCT.clone()
    cut = windows(80, 48, 16)
    other_BCT[:, :, : cut[1].start - 8] = vocal(200)[:, :, : cut[1].start - 8]  # only the first window can hear the difference
    ends = [list(denoise([lane(evaluator, sung, cut, seed=3)], evaluator))[1][1] for sung in (vocal_BCT, other_BCT)]
    assert float((ends[0] - ends[1])[:, :, cut[1].shared :].abs().max()) > 1e-3


class Counting(Evaluator):
    """What is asked at a time of another evaluator."""

    def __init__(self, inner: Evaluator, slots: int) -> None:
        super().__init__(inner.unet)
        self.inner, self.slots, self.asked = inner, slots, list[int]()

    def encode(
        self, vocals_BCT: Sequence[Tensor | None], frames: int, conditions: Sequence[Conditions | None] | None = None
    ) -> list[VocalFeatures]:
        return self.inner.encode(vocals_BCT, frames, conditions)

    def __call__(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        self.asked.append(len(evaluations))
        return self.inner(evaluations)

    def close(self) -> None: ...


@pytest.mark.parametrize("slots", [1, 2, 6, 32])
def test_lanes_give_the_same_bits_however_many_run_together(evaluator: ThreadedEvaluator, slots: int) -> None:
    requests = [(90, 1, 2.0), (20, 2, 1.0), (90, 3, 2.0), (41, 4, 3.0), (130, 5, 2.0)]

    def lanes() -> list[Lane]:
        return [
            lane(evaluator, vocal(frames), windows(frames, 48, 16), seed=seed, guidance=guidance) for frames, seed, guidance in requests
        ]

    alone = [torch.cat([piece for _, piece in denoise([one], evaluator)], dim=2) for one in lanes()]
    counting, together = Counting(evaluator, slots), lanes()
    told: list[int] = []
    found: dict[Lane, list[Tensor]] = {one: [] for one in together}
    for one, piece in denoise(together, counting, told.append):
        found[one].append(piece)
    for wanted, one in zip(alone, together, strict=True):
        assert torch.equal(torch.cat(found[one], dim=2), wanted)
        assert one.done
    assert max(counting.asked) <= max(slots, 2)  # a guided lane needs two at least
    assert sum(told) == sum(4 * len(windows(frames, 48, 16)) for frames, _, _ in requests)


def test_a_first_window_is_there_before_the_second_begins(evaluator: ThreadedEvaluator) -> None:
    counting, cut = Counting(evaluator, 2), windows(200, 48, 16)
    pieces = denoise([lane(evaluator, vocal(200), cut, seed=1)], counting)
    for index, window in enumerate(cut):
        _, piece = next(pieces)
        assert piece.shape == (1, 64, window.settled)
        assert len(counting.asked) == 4 * (index + 1)
