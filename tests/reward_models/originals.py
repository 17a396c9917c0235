"""The published packages, made importable beside today's libraries: oracles of parity, used by no code of ours.

``hpsv2x`` 1.2.0 and ``image-reward`` 1.5 are installed without their dependencies. What they import and the parts under
test never call is replaced by empty modules; what transformers has removed since is given back to ImageReward's text
network. Nothing that computes a score is touched.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


@contextmanager
def _stubbed(modules: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Inside, each module exists with these attributes; those that are installed are hidden meanwhile."""
    kept = {name: sys.modules.get(name) for name in modules}
    for name, attributes in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        module.__path__ = []
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextmanager
def _quiet() -> Iterator[None]:
    """Old packages warn about what they use; that is not under test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def hpsv2(part: str) -> Any:
    """A module of hpsv2's copy of open_clip, such as ``model``; its progress bar is not needed."""
    with _stubbed({"clint": {}, "clint.textui": {"progress": None}}), _quiet():
        return import_module(f"hpsv2.src.open_clip.{part}")


@cache
def image_reward(part: str = "ImageReward") -> Any:
    """A module of ImageReward, such as ``models.BLIP.vit``."""
    from transformers import modeling_utils, pytorch_utils

    for name in ("apply_chunking_to_forward", "prune_linear_layer"):  # they have moved
        setattr(modeling_utils, name, getattr(pytorch_utils, name))
    modeling_utils.__dict__["find_pruneable_heads_and_indices"] = None  # removed; heads are never pruned here
    stubs: dict[str, Mapping[str, Any]] = {
        "clip": {},
        "datasets": {"load_dataset": None},
        "fairscale": {},
        "fairscale.nn": {},
        "fairscale.nn.checkpoint": {},
        "fairscale.nn.checkpoint.checkpoint_activations": {"checkpoint_wrapper": None},
    }
    with _stubbed(stubs), _quiet():
        found, med = (import_module(f"ImageReward.{name}") for name in (part, "models.BLIP.med"))
    base = med.BertPreTrainedModel
    base.all_tied_weights_keys = {}
    base.invert_attention_mask = _invert_attention_mask
    base.get_head_mask = lambda self, head_mask, number: [None] * number
    import_module("ImageReward.models.BLIP.blip_pretrain").init_tokenizer = lambda: None
    return found


def _invert_attention_mask(self: Any, mask: Tensor) -> Tensor:
    """As transformers had it: 0 where a token is seen, the least number where it is not, for every head and query."""
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    return (1.0 - mask.float()) * torch.finfo(torch.float32).min
