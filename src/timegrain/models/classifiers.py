"""What is trained on features to name a video's class: one linear layer, or a learned query that attends to time steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from timegrain.files import atomic_path
from timegrain.models.hub import CLASSIFIER_KEY

Kind = Literal["linear", "attentive"]


class LinearClassifier(nn.Module):
    """Mean over time, L2 norm if wanted, dropout, one linear layer.

    The kernel starts as Keras draws it (Glorot uniform), the bias at 0.

    Args:
        num_features: D.
        num_classes: Classes.
        normalise: Whether the mean is divided by its length, as the reference family's linear evaluation does.
        dropout: Share of features set to 0 while training.
    """

    def __init__(self, num_features: int, num_classes: int, normalise: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.normalise, self.dropout = normalise, dropout
        self.linear = nn.Linear(num_features, num_classes)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "b t d"]) -> Float[Tensor, "b k"]:
        """Logits (B, K) of features (B, T', D)."""
        pooled = features.mean(1)
        if self.normalise:
            # The reference's form: its epsilon is under the root.
            pooled = pooled * pooled.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
        logits: Tensor = self.linear(F.dropout(pooled, self.dropout, self.training))
        return logits


class AttentiveClassifier(nn.Module):
    """A learned query that attends to the time steps, then one linear layer.

    The protocol of today's frozen-encoder papers (V-JEPA 2: three blocks of self-attention, then one of
    cross-attention, 16 heads). Tokens are a clip's time steps, with their order added as sines; there is one query.

    Args:
        num_features: D.
        num_classes: Classes.
        num_blocks: Blocks of self-attention before the query; 0 leaves the query alone.
        num_heads: Heads of every attention; lowered to the largest number that divides D.
        dropout: In the blocks, and before the linear layer.
    """

    def __init__(
        self, num_features: int, num_classes: int, num_blocks: int = 3, num_heads: int = 16, dropout: float = 0.0
    ) -> None:
        super().__init__()
        heads = next(count for count in range(min(num_heads, num_features), 0, -1) if num_features % count == 0)
        self.norm = nn.LayerNorm(num_features)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                num_features, heads, 4 * num_features, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_blocks)
        )
        self.query = nn.Parameter(torch.empty(1, 1, num_features))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.key_norm = nn.LayerNorm(num_features)
        self.attention = nn.MultiheadAttention(num_features, heads, dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(num_features),
            nn.Linear(num_features, 4 * num_features),
            nn.GELU(),
            nn.Linear(4 * num_features, num_features),
        )
        self.dropout = dropout
        self.linear = nn.Linear(num_features, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "b t d"]) -> Float[Tensor, "b k"]:
        """Logits (B, K) of features (B, T', D)."""
        tokens = self.norm(features)
        tokens = tokens + time_code(features.shape[1], features.shape[2], features.device).to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        keys = self.key_norm(tokens)
        query = self.query.expand(len(features), -1, -1)
        found = query + self.attention(query, keys, keys, need_weights=False)[0]
        found = found + self.mlp(found)
        logits: Tensor = self.linear(F.dropout(found[:, 0], self.dropout, self.training))
        return logits


def time_code(num_steps: int, num_features: int, device: torch.device | None = None) -> Float[Tensor, "t d"]:
    """Sines and cosines of each position (Vaswani et al., section 3.5), (T', D)."""
    half = -(-num_features // 2)
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=device) / half)
    angles = torch.arange(num_steps, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :num_features]


def save_classifier(
    classifier: nn.Module, path: str | os.PathLike[str], class_names: Sequence[str], settings: dict[str, Any]
) -> None:
    """Write a classifier to one safetensors file, with its classes and settings as JSON in the metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    text = json.dumps({"class_names": list(class_names), **settings})
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", CLASSIFIER_KEY: text})
