"""How good a picture looks, whatever it shows: the LAION aesthetic predictor v2 on CLIP's embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor, nn

from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.checkpoints import find_checkpoint, load_strictly, read_state_dict
from difalign.reward_models.clip import ClipReward
from difalign.reward_models.media_check import check_media
from difalign.reward_models.networks import frozen
from difalign.reward_models.score_head import score_head

ENCODER = "openai/clip-vit-large-patch14"  # improved-aesthetic-predictor, released code
_PREFIX = "layers."  # of the head's tensors in the published file


def load_head(state: dict[str, Tensor], width: int, *, source: str) -> nn.Sequential:
    """The head with exactly the tensors of the published file.

    Raises:
        ValueError: if names or shapes differ.
    """
    with torch.device("meta"):
        head = score_head(width)
    load_strictly(head, {key.removeprefix(_PREFIX): tensor for key, tensor in state.items()}, source=source)
    return head


@final
class AestheticReward:
    """A score of about 1 to 10, mostly 4 to 7: a linear function of the picture's unit vector by CLIP ViT-L/14.

    The prompt does not matter. The embedding is normalised before the head, as the head was trained
    (improved-aesthetic-predictor, released code); without that, scores mean nothing.
    """

    differentiable = True

    def __init__(self, encoder: ClipReward, head: nn.Sequential, *, name: str = "aesthetic") -> None:
        self.name = name
        self.encoder = encoder
        self.head = frozen(head)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        file: str = "aesthetic-model.pth",
        sha256: str | None = None,
        encoder: str = ENCODER,
        preprocess: str = "auto",
        micro_batch: int = 16,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        name: str = "aesthetic",
    ) -> Self:
        """Load the head from ``source`` and the CLIP model from ``encoder``.

        Args:
            source: a folder, or an id of the model hub.
            file: the head's file in there.
            sha256: of the file; None = not verified.
            encoder: the folder or repository of CLIP ViT-L/14.
            preprocess: a mode of ``preprocessing``.
            micro_batch: pictures a forward; memory only.
            dtype: in which CLIP computes; the head and scores are float32 whatever it is.
            device: where it computes.
            revision: of the head's hub repository.
            name: of the reward.

        Raises:
            ValueError: if a file cannot be had, or holds another model.
        """
        path = find_checkpoint(source, file=file, sha256=sha256, revision=revision)
        clip = ClipReward.from_pretrained(
            encoder, preprocess=preprocess, micro_batch=micro_batch, dtype=dtype, device=device, name=name
        )
        width = clip.model.visual_projection.out_features
        head = load_head(read_state_dict(path), width, source=str(path))
        return cls(clip, head.to(device=device, dtype=torch.float32), name=name)

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        self.encoder.to(device)
        self.head.to(device)

    def score(
        self,
        media: Tensor,
        prompts: Sequence[str],
        *,
        metadata: Metadata | None = None,
        sigma: float | None = None,
    ) -> RewardOutput:
        """Score pixels in [0, 1], [N, 3, H, W]; what the prompts say, ``metadata`` and ``sigma`` are not used.

        Raises:
            ValueError: if the numbers differ, the media are no pictures, or ``exact`` is asked for a gradient.
        """
        check_media(media, prompts, reader=self.name)
        return RewardOutput(self.head(self.encoder.embed_images(media)).squeeze(-1).to(media.device))
