"""The parts of tiny-clip: a CLIPModel that reads one cell of a scene as one token, its loss, and how it is saved."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tiny_text import MAX_TOKENS
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from difalign.embedded.scenes import CELL, SIZE

EMBEDDING = 128  # a scene of two things and their places has to fit in
POSITION_DEVIATION = 0.3  # of the patches' embeddings of an untrained model
_MAX_LOG_SCALE = math.log(100.0)  # CLIP (arXiv 2103.00020), section 2.5


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIPModel of 1.06 million parameters; its patches are the cells of the scene."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": EMBEDDING,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": CELL,
        "projection_dim": EMBEDDING,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING))
    # transformers starts positions at 0.02, a seventeenth of what patches hold: places are then learnt late.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=POSITION_DEVIATION)
    return model


def build_image_processor() -> CLIPImageProcessor:
    """Resize the shorter side to that of a scene, crop the middle, and bring [0, 1] to [-1, 1]."""
    return CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def contrastive_loss(model: CLIPModel, pixels: Tensor, ids: Tensor, true: Tensor) -> Tensor:
    """Both directions of CLIP's loss (arXiv 2103.00020, figure 3), with texts that belong to no picture of the batch.

    A caption that is true of a picture without being its own neither attracts nor repels it.

    Args:
        model: the CLIPModel.
        pixels: preprocessed, [B, 3, SIZE, SIZE].
        ids: token ids, [B + E, tokens]; the first B are the pictures' own captions.
        true: whether each caption is true of each picture, [B, B + E] bool.
    """
    images = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    texts = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    scale = model.logit_scale.clamp(max=_MAX_LOG_SCALE).exp()
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T  # [B, B + E]
    own = torch.arange(len(pixels), device=pixels.device)
    other_truths = true.clone()
    other_truths[own, own] = False
    logits = logits.masked_fill(other_truths, -torch.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(own)].T, own)) / 2


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a folder in fp16 safetensors that ``CLIPModel``, ``CLIPProcessor`` and ``ClipReward`` load."""
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    build_image_processor().save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text()) | {"dtype": "float32"}  # transformers would compute in what files hold
    for part in ("text_config", "vision_config"):
        values[part] |= {"dtype": "float32"}
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
