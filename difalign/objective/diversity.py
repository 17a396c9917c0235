"""How different the samples of one prompt are: their mean pairwise distance, on pictures made small.

Two noises never give the same pixels, so single pixels say little; a policy that has collapsed draws the same
arrangement of colours again and again, and an 8 x 8 picture shows that at next to no cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EDGE = 8  # pixels a side


def thumbnails(media: Tensor) -> Tensor:
    """Media [N, ..., H, W] as vectors [N, D] float32: pictures averaged down to 8 x 8, smaller ones as they are."""
    values = media.detach().float()
    if values.dim() >= 4 and min(values.shape[-2:]) > _EDGE:
        small = torch.nn.functional.adaptive_avg_pool2d(values.flatten(0, -4), _EDGE)
        values = small.view(*values.shape[:-2], _EDGE, _EDGE)
    return values.flatten(1)


def pairwise_distance(vectors: Tensor, group: Tensor) -> Tensor:
    """The mean root-mean-square distance between two members of each group, [G]; groups of one are left out.

    Args:
        vectors: [N, D].
        group: [N] int64, any numbers; rows with the same number belong together.
    """
    means = []
    for number in torch.unique(group):
        rows = vectors[group == number]
        if len(rows) > 1:
            means.append(torch.pdist(rows).mean() / rows.shape[1] ** 0.5)
    return torch.stack(means) if means else vectors.new_zeros(0)
