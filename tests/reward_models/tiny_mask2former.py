"""A random Mask2Former small enough for a test, with COCO's eighty classes."""

from __future__ import annotations

from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from difalign.reward_models.geneval_clauses import CLASSES
from tests.tiny_models import seeded

SIDE = 64  # pixels along the shorter side that it is shown; the longer has at most 96


def tiny_mask2former(*, seed: int = 0, labels: tuple[str, ...] = CLASSES) -> Mask2FormerForUniversalSegmentation:
    backbone = SwinConfig(
        image_size=SIDE,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=32,
        num_attention_heads=2,
        num_queries=6,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    with seeded(seed):
        return Mask2FormerForUniversalSegmentation(config).eval()
