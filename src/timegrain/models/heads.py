"""Projection heads: from the backbone's features to the space in which clips are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NORM_MOMENTUM = 0.003  # Keras writes the same number as 0.997
NORM_EPS = 1e-5


class ProjectionHead(nn.Module):
    """``num_hidden`` x (Linear, BatchNorm unless ``norm`` is off, ReLU), then Linear; every Linear has a bias.

    Kernels start Glorot-uniform, biases zero. Sizes and norms are those of the reference family's head (TensorFlow
    Model Garden, official/projects/video_ssl); the paper does not state its own.

    Args:
        in_features: Size of the features.
        hidden_features: Width of the hidden layers.
        num_hidden: How many hidden layers.
        out_features: Size of the embeddings.
        norm: Whether the hidden layers have a batch norm.
        norm_momentum: Share of the new batch in the norms' running statistics. The reference's 0.003 needs about a
            thousand steps to forget its start: raise it for a short training whose embeddings are evaluated.

    Raises:
        ValueError: A size is below 1, or ``num_hidden`` is not 0 to 100.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int = 2048,
        num_hidden: int = 3,
        out_features: int = 128,
        *,
        norm: bool = True,
        norm_momentum: float = NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        if min(in_features, hidden_features, out_features) < 1 or not 0 <= num_hidden <= 100:
            raise ValueError(
                f"a projection head needs sizes of at least 1 and at most 100 hidden layers; got "
                f"{in_features} features, {num_hidden} hidden layers of {hidden_features}, {out_features} outputs"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.layers = nn.Sequential()
        for _ in range(num_hidden):
            self.layers.append(nn.Linear(in_features, hidden_features))
            if norm:
                self.layers.append(nn.BatchNorm1d(hidden_features, eps=NORM_EPS, momentum=norm_momentum))
            self.layers.append(nn.ReLU(inplace=True))
            in_features = hidden_features
        self.layers.append(nn.Linear(in_features, out_features))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows c"]:
        """Project each row; norms see all rows of all leading axes as one batch.

        Args:
            features: (..., D), for example (B, T', D) for time steps or (B, D) for clips.

        Returns:
            (..., C), not normalised.
        """
        rows = rearrange(features, "... d -> (...) d")
        projected: Tensor = self.layers(rows)
        return projected.reshape(*features.shape[:-1], self.out_features)

    def project_each(self, groups: Sequence[Float[Tensor, "... d"]]) -> list[Float[Tensor, "... c"]]:
        """What :meth:`forward` gives for one group after the other, with every weight read once for all of them.

        Norms see each group by itself, in order. The weights are large and the rows few, so reading them is what a head
        costs.

        Args:
            groups: (..., D) each.

        Returns:
            (..., C) each, not normalised.
        """
        rows = [rearrange(features, "... d -> (...) d") for features in groups]
        lengths = [len(part) for part in rows]
        joined = torch.cat(rows)
        for layer in self.layers:
            if isinstance(layer, _BatchNorm):
                joined = torch.cat([layer(part) for part in torch.split(joined, lengths)])
            else:
                joined = layer(joined)
        parts = zip(torch.split(joined, lengths), groups, strict=True)
        return [part.reshape(*features.shape[:-1], self.out_features) for part, features in parts]
