"""Soft alignment attention: the direction of its mix, what it allocates, what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.diffusion.objective import Schedule
from model.errors import ModelError
from model.network.attention import SoftAlignmentAttention

FRAMES, HERE, FAR = 128, 20, slice(90, 128)


def attention(window: int = 16) -> SoftAlignmentAttention:
    torch.manual_seed(0)
    return SoftAlignmentAttention(16, 16, heads=2, head_channels=8, window=window)


@torch.no_grad()
def context_change(t: int) -> tuple[float, float]:
    """How much the context around HERE moves when the vocal changes far from it, and when it changes nearby, at step t."""
    module = attention()
    x_BCT, vocal_BCT = torch.randn(1, 16, FRAMES), torch.randn(1, 16, FRAMES)
    alpha_bar_B = Schedule().alpha_bar[t : t + 1].float()

    def context(vocal: Tensor) -> Tensor:
        return module(x_BCT, module.project_vocal(vocal), alpha_bar_B)[:, :, HERE]

    far_BCT, near_BCT = vocal_BCT.clone(), vocal_BCT.clone()
    far_BCT[:, :, FAR] += 3
    near_BCT[:, :, HERE - 4 : HERE + 4] += 3
    before = context(vocal_BCT)
    return float((context(far_BCT) - before).norm()), float((context(near_BCT) - before).norm())


def test_noise_listens_globally_and_the_clean_end_locally() -> None:
    far_at_last, _ = context_change(799)
    far_at_first, near_at_first = context_change(0)
    assert far_at_last > 0.1
    assert far_at_first < 1e-3 * far_at_last  # ᾱ(0) = 1 − 5e-5: nothing but that remainder
    assert near_at_first > 0.1


def test_far_share_falls_as_noise_falls() -> None:
    changes = [context_change(t)[0] for t in (0, 200, 400, 600, 799)]
    assert changes == sorted(changes)


def test_window_is_16_frames_around_each() -> None:
    module = attention()
    x_BCT, vocal_BCT = torch.randn(1, 16, FRAMES), torch.randn(1, 16, FRAMES, requires_grad=True)
    module(x_BCT, module.project_vocal(vocal_BCT), torch.ones(1))[0, :, 50].sum().backward()
    assert vocal_BCT.grad is not None
    reached = vocal_BCT.grad[0].abs().sum(0).nonzero().flatten().tolist()
    assert reached == list(range(50 - 8 - 1, 50 + 7 + 1 + 1))  # the window, and one frame on either side by the projections


@torch.no_grad()
def test_what_is_heard_far_away_depends_on_the_distance_and_on_nothing_else() -> None:
    """One vocal frame among silence, under a query that is the same everywhere: moved along, what is heard of it moves with it."""
    module, moved = attention(), 25
    assert module.global_key_value.bias is not None
    module.global_key_value.bias.zero_()
    x_BCT, pulse_BC = 3 * torch.randn(1, 16, 1).expand(-1, -1, FRAMES), 10 * torch.randn(1, 16)
    heard = []
    for frame in (40, 40 + moved):
        vocal_BCT = torch.zeros(1, 16, FRAMES)
        vocal_BCT[:, :, frame] = pulse_BC
        heard.append(module(x_BCT, module.project_vocal(vocal_BCT), torch.zeros(1)))
    torch.testing.assert_close(heard[1][:, :, moved:], heard[0][:, :, :-moved])
    assert float(heard[0].std(dim=2).max()) > 0.01, "distances differ"


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation yields."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self.numel = max(self.numel, value.untyped_storage().nbytes() // value.element_size())
        return result


def test_no_tensor_of_frames_by_frames_or_frames_by_window() -> None:
    module, frames = attention(), 4_096
    x_BCT, vocal_BCT = torch.randn(1, 16, frames), torch.randn(1, 16, frames)
    with Largest() as largest, torch.inference_mode():
        module(x_BCT, module.project_vocal(vocal_BCT), torch.full((1,), 0.5))
    inner = module.heads * module.head_channels
    assert largest.numel <= 2 * inner * (frames + 16)  # a copy for every frame of the window would be 8 times that
    assert largest.numel < frames * frames / 100


@pytest.mark.parametrize(("options", "message"), [({"window": 15}, "window=15"), ({"head_channels": 7}, "head_channels=7")])
def test_refuses_odd_sizes(options: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        SoftAlignmentAttention(16, 16, **{"heads": 2, "head_channels": 8, "window": 16, **options})
