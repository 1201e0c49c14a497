"""Soft alignment attention: the accompaniment (queries) listens to the vocal (keys, values), near and far.

Shapes: B batch, C channels, T frames, H heads, D head channels, W blocks of queries, Q queries a block, K keys a block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import ModelError


def rotary_tables(frames: int, head_channels: int, device: torch.device, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """cos and sin of position × frequency, each (T, D/2) float32 (Su et al. 2024, eq. 15)."""
    frequency = base ** (-torch.arange(0, head_channels, 2, device=device, dtype=torch.float32) / head_channels)
    angle = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Turns channel pairs (d, d + D/2) by the position's angle: a dot product then depends on the distance alone."""
    first, second = x_BHTD.chunk(2, dim=-1)
    cos_TD, sin_TD = cos_TD.to(x_BHTD.dtype), sin_TD.to(x_BHTD.dtype)
    return torch.cat((first * cos_TD - second * sin_TD, second * cos_TD + first * sin_TD), dim=-1)


@dataclass(frozen=True, kw_only=True)
class AlignmentKeys:
    """The vocal's side of the attention: everything that does not depend on x or t, computed once a request.

    Keys of local attention lie in overlapping blocks: a block of 16 queries sees 32 keys, so twice the frames are stored,
    never frames × window.
    """

    local_key_BWHKD: Tensor
    local_value_BWHKD: Tensor
    local_allowed_BWQK: Tensor
    global_key_BHTD: Tensor
    global_value_BHTD: Tensor
    global_allowed_BT: Tensor | None
    """None: every frame is valid."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same keys with every tensor changed along its batch dimension, or moved."""
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in vars(self).items()}
        return type(self)(**changed)

    def tensors(self) -> Iterator[Tensor]:
        """Those that are there, in the order of the fields."""
        return (value for value in vars(self).values() if value is not None)


def blocks_of_keys(x_BHTD: Tensor, window: int) -> Tensor:
    """(B, H, T, D) → (B, W, H, 2·window, D): block w holds frames w·window − window/2 … w·window + 3·window/2 − 1."""
    frames = x_BHTD.shape[2]
    tail = -frames % window
    padded = F.pad(x_BHTD, (0, 0, window // 2, tail + window // 2))
    return padded.unfold(2, 2 * window, window).permute(0, 2, 1, 4, 3).contiguous()


def allowed_in_blocks(valid_BT: Tensor, window: int) -> Tensor:
    """(B, W, window, 2·window) bool: query i sees frames i − window/2 … i + window/2 − 1 that exist and are valid."""
    tail = -valid_BT.shape[1] % window
    keys_BWK = F.pad(valid_BT, (window // 2, tail + window // 2), value=False).unfold(1, 2 * window, window)
    offset_QK = torch.arange(2 * window, device=valid_BT.device) - torch.arange(window, device=valid_BT.device)[:, None]
    band_QK = (offset_QK >= 0) & (offset_QK < window)
    allowed_BWQK = band_QK & keys_BWK[:, :, None, :]
    # A query with nothing to see (padding far from any vocal) would be a softmax over nothing, NaN; its output is discarded.
    return allowed_BWQK | (band_QK & ~allowed_BWQK.any(dim=-1, keepdim=True))


def local_attention(query_BHTD: Tensor, keys: AlignmentKeys) -> Tensor:
    """Attention of frame i to the window of vocal frames around i, block by block: T·2·window products, no T×T mask."""
    batch, heads, frames, head_channels = query_BHTD.shape
    blocks, window = keys.local_allowed_BWQK.shape[1], keys.local_allowed_BWQK.shape[2]
    padded = F.pad(query_BHTD, (0, 0, 0, blocks * window - frames))
    query = padded.view(batch, heads, blocks, window, head_channels).transpose(1, 2).flatten(0, 1)
    context = F.scaled_dot_product_attention(
        query,
        keys.local_key_BWHKD.flatten(0, 1),
        keys.local_value_BWHKD.flatten(0, 1),
        attn_mask=keys.local_allowed_BWQK.flatten(0, 1).unsqueeze(1),
    )
    context = context.view(batch, blocks, heads, window, head_channels).transpose(1, 2)
    return context.reshape(batch, heads, blocks * window, head_channels)[:, :, :frames]


class SoftAlignmentAttention(nn.Module):
    """context = ᾱ(t)·local + (1 − ᾱ(t))·global (paper, eq. 1 to 3; direction as its text says: noise listens globally).

    Local: `window` vocal frames around i (i − window/2 … i + window/2 − 1), projections by convolutions of 3 frames.
    Global: all vocal frames, rotary embedding on queries and keys.
    """

    def __init__(self, channels: int, vocal_channels: int, *, heads: int, head_channels: int, window: int) -> None:
        super().__init__()
        if window < 2 or window % 2:
            raise ModelError(f"window={window}: must be even and at least 2; the method uses 16")
        if head_channels % 2:
            raise ModelError(f"head_channels={head_channels}: must be even, for rotary pairs; the method uses 64")
        self.heads, self.head_channels, self.window = heads, head_channels, window
        inner = heads * head_channels
        self.local_query = nn.Conv1d(channels, inner, 3, padding=1)
        self.local_key_value = nn.Conv1d(vocal_channels, 2 * inner, 3, padding=1)
        self.global_query = nn.Conv1d(channels, inner, 1)
        self.global_key_value = nn.Conv1d(vocal_channels, 2 * inner, 1)
        self.output = nn.Conv1d(inner, channels, 1)

    def _heads(self, x_BCT: Tensor) -> Tensor:
        return x_BCT.unflatten(1, (-1, self.head_channels)).transpose(2, 3)

    def project_vocal(self, vocal_BCT: Tensor, valid_BT: Tensor | None = None) -> AlignmentKeys:
        """Keys and values of a request. Invalid frames of `vocal_BCT` must hold zeros (the convolution sees across the edge)."""
        batch, _, frames = vocal_BCT.shape
        local_key, local_value = self._heads(self.local_key_value(vocal_BCT)).chunk(2, dim=1)
        global_key, global_value = self._heads(self.global_key_value(vocal_BCT)).chunk(2, dim=1)
        cos_TD, sin_TD = rotary_tables(frames, self.head_channels, vocal_BCT.device)
        everywhere = torch.ones(batch, frames, dtype=torch.bool, device=vocal_BCT.device)
        return AlignmentKeys(
            local_key_BWHKD=blocks_of_keys(local_key, self.window),
            local_value_BWHKD=blocks_of_keys(local_value, self.window),
            local_allowed_BWQK=allowed_in_blocks(everywhere if valid_BT is None else valid_BT, self.window),
            global_key_BHTD=rotate(global_key, cos_TD, sin_TD),
            global_value_BHTD=global_value.contiguous(),
            global_allowed_BT=valid_BT,
        )

    def forward(self, x_BCT: Tensor, keys: AlignmentKeys, alpha_bar_B: Tensor) -> Tensor:
        """(B, C, T) of the accompaniment, the vocal's keys, ᾱ(t) → (B, C, T), to be added to x."""
        cos_TD, sin_TD = rotary_tables(x_BCT.shape[2], self.head_channels, x_BCT.device)
        local_BHTD = local_attention(self._heads(self.local_query(x_BCT)), keys)
        allowed = keys.global_allowed_BT
        global_BHTD = F.scaled_dot_product_attention(
            rotate(self._heads(self.global_query(x_BCT)), cos_TD, sin_TD),
            keys.global_key_BHTD,
            keys.global_value_BHTD,
            attn_mask=None if allowed is None else allowed[:, None, None, :],
        )
        context_BHTD = torch.lerp(global_BHTD, local_BHTD, alpha_bar_B.to(local_BHTD.dtype).view(-1, 1, 1, 1))
        return self.output(context_BHTD.transpose(2, 3).flatten(1, 2))
