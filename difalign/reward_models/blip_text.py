"""Prompts as BLIP's text network reads them: 35 tokens of BERT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from difalign.reward_models.text_cache import LengthLimit, TextCache

if TYPE_CHECKING:
    from transformers import BertTokenizer

BERT = "google-bert/bert-base-uncased"  # the vocabulary that BLIP (arXiv 2201.12086) and ImageReward were trained with
LONGEST = 35  # tokens; BLIP and ImageReward, released code


@final
class BlipPrompts:
    """Token ids and masks of prompts, each read once. The rest of the text side depends on the picture."""

    def __init__(self, tokenizer: BertTokenizer, *, reader: str, longest: int = LONGEST) -> None:
        self._tokenizer = tokenizer
        self._limit = LengthLimit(longest, reader=reader)
        self._cache = TextCache(self._read)

    def read(self, prompts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and mask, each [N, 35] int64; 0 in the mask where there is only padding."""
        rows = self._cache.readings(prompts)
        ids, mask = (torch.stack(column).to(device) for column in zip(*rows, strict=True))
        return ids, mask

    def _read(self, prompt: str) -> tuple[Tensor, Tensor]:
        self._limit.note(prompt, len(self._tokenizer(prompt, verbose=False).input_ids))
        longest = self._limit.longest
        found = self._tokenizer(prompt, padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
        return found.input_ids[0], found.attention_mask[0]
