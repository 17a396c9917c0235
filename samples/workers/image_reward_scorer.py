"""ImageReward by its own package, one picture after the other as its ``score`` does; for a worker's environment."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_STATE: dict[str, Any] = {}


def load(random_weights: bool) -> None:
    """Read the checkpoint, or make a small random model of the package's own classes."""
    torch = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if random_weights:
        _STATE["model"] = _random_model()
        return
    package = importlib.import_module("ImageReward")
    _STATE["model"] = package.load("ImageReward-v1.0", device=device)


def score(media: np.ndarray, prompts: list[str]) -> list[float]:
    """One number a picture, about -2 to 2; uint8 [N, 3, H, W]."""
    image = importlib.import_module("PIL.Image")
    torch = importlib.import_module("torch")
    with torch.no_grad():
        return [
            _STATE["model"].score(prompt, image.fromarray(picture.transpose(1, 2, 0)))
            for picture, prompt in zip(media, prompts, strict=True)
        ]


def _random_model() -> Any:
    """The package's network with a narrow text side and its smallest picture side, and a vocabulary of letters."""
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    blip: Any = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    vit = importlib.import_module("ImageReward.models.BLIP.vit")
    package = importlib.import_module("ImageReward.ImageReward")
    folder = Path(tempfile.mkdtemp(prefix="image-reward-"))
    letters = [chr(code) for code in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = {
        "architectures": ["BertModel"],
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "vocab_size": len(words) + 2,
        "add_cross_attention": True,
        "encoder_width": 64,
        "layer_norm_eps": 1e-12,
        "attention_probs_dropout_prob": 0.1,
        "hidden_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "type_vocab_size": 2,
    }
    (folder / "med_config.json").write_text(json.dumps(config))

    def tokenizer() -> Any:
        made = transformers.BertTokenizer(str(folder / "vocab.txt"))
        made.add_special_tokens({"bos_token": "[DEC]"})
        made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        made.enc_token_id = made.additional_special_tokens_ids[0]
        return made

    def pictures(_: str, image_size: int, *_rest: object) -> tuple:
        return vit.VisionTransformer(img_size=image_size, patch_size=16, embed_dim=64, depth=2, num_heads=4), 64

    blip.init_tokenizer, blip.create_vit = tokenizer, pictures
    torch.manual_seed(0)
    model = package.ImageReward(str(folder / "med_config.json")).eval()
    for parameter in model.mlp.parameters():  # which the package begins with next to nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return model
