"""Non-local blocks: every place of a feature map looks at every other (Wang et al., CVPR 2018)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, einsum, nn

from timegrain.models.cpu_norm import Norm3d

Affinity = Literal["softmax", "dot_product"]


class NonLocalBlock(nn.Module):
    """x + norm(W · y), where y at a place is the mean of g over all places, weighted by their affinity to it.

    Queries θ, keys φ and values g have half the channels; keys and values are max-pooled over 2 x 2 pixels first. The
    norm's gain starts at 0, so that a new block changes nothing. Source: the paper, section 3, with the sizes of
    PySlowFast's networks.

    Args:
        channels: Of input and output.
        affinity: "softmax" of scaled products over all places, or the product itself, "dot_product", divided by their
            number.
    """

    def __init__(self, channels: int, affinity: Affinity = "softmax") -> None:
        super().__init__()
        if affinity not in ("softmax", "dot_product"):
            raise ValueError(f"the affinity of non-local blocks is softmax or dot_product; got {affinity!r}")
        inner = channels // 2
        self.affinity, self.inner = affinity, inner
        self.query, self.key, self.value = (nn.Conv3d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv3d(inner, channels, 1)
        self.norm = Norm3d(channels)
        nn.init.zeros_(self.norm.weight)
        for projection in (self.query, self.key, self.value, self.out):
            nn.init.normal_(projection.weight, std=0.01)
            assert projection.bias is not None
            nn.init.zeros_(projection.bias)

    def num_products(self, num_frames: int, height: int, width: int) -> int:
        """Multiply-adds of the two products between places, for one map of this size."""
        return 2 * self.inner * num_frames * height * width * num_frames * max(1, height // 2) * max(1, width // 2)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """(B, C, T, H, W) -> the same shape."""
        size = (1, min(2, x.shape[3]), min(2, x.shape[4]))
        pooled = F.max_pool3d(x, size)
        queries = rearrange(self.query(x), "b c t h w -> b (t h w) c")
        keys = rearrange(self.key(pooled), "b c t h w -> b (t h w) c")
        values = rearrange(self.value(pooled), "b c t h w -> b (t h w) c")
        if self.affinity == "softmax":
            mixed = F.scaled_dot_product_attention(queries, keys, values)
        else:
            mixed = einsum("bqk,bkc->bqc", einsum("bqc,bkc->bqk", queries, keys) / keys.shape[1], values)
        t, h, w = x.shape[2:]
        spread = rearrange(mixed, "b (t h w) c -> b c t h w", t=t, h=h, w=w)
        out: Tensor = x + self.norm(self.out(spread))
        return out
