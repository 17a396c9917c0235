"""The head that ImageReward and the LAION aesthetic predictor share: five linear layers without activations."""

from __future__ import annotations

from torch import nn


def score_head(width: int) -> nn.Sequential:
    """A head from ``width`` features to one number; its layers are numbered as in both checkpoints, 0, 2, 4, 6, 7.

    There are no activations between the layers, so that it is one linear map (improved-aesthetic-predictor and
    ImageReward, released code); dropout acts in training alone.
    """
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
