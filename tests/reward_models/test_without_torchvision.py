"""Neither the core nor the scorers on transformers need torchvision or open_clip."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.house.repository import ROOT

_LEFT_OUT = ("torchvision", "open_clip", "timm")

PROGRAM = """
import importlib.util
import sys

import torch

import difalign
from difalign.reward_models import aesthetic, blip_itm, clip, diversity, hpsv2, image_reward  # noqa: F401
from difalign.reward_models.score_head import score_head
from tests.reward_models.bert_words import bert_tokenizer
from transformers import BitImageProcessor, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor
from transformers import Dinov2Config, Dinov2Model

wanted = clip.ImageInput.of_processor
assert wanted(BlipImageProcessor()).crop is None and wanted(BitImageProcessor(resample=3)).crop == (224, 224)

for name in ("torchvision", "open_clip", "timm"):
    assert importlib.util.find_spec(name) is None, name

prompts = ["a red circle", "two blue squares"]
media = difalign.sample("tiny-sd3", prompts, steps=2, seed=0).pixels
scores = difalign.load_reward("tiny-clip").score(media, prompts).scores
assert scores.shape == (2,) and scores.isfinite().all()

config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
size = {"image_size": 16, "patch_size": 8}
words = bert_tokenizer()
text = {**config, "vocab_size": len(words), "encoder_hidden_size": 8, "is_decoder": True}
blip = BlipConfig(text_config=text, vision_config={**config, **size}, image_text_hidden_size=4)
small = wanted(BlipImageProcessor(size={"height": 16, "width": 16}))
tiny_clip = difalign.load_reward("tiny-clip")
network = image_reward.ImageRewardNetwork(blip.vision_config, blip.text_config)
for reward in (
    blip_itm.BlipReward(BlipForImageTextRetrieval(blip), words, small),
    image_reward.ImageReward(network, words, image_reward.image_input(16)),
    aesthetic.AestheticReward(tiny_clip, score_head(tiny_clip.model.config.projection_dim)),
    diversity.DiversityReward(diversity.DinoEncoder(Dinov2Model(Dinov2Config(**config, **size, mlp_ratio=1)), small)),
):
    scored = reward.score(media, ["a red circle"] * 2).scores
    assert scored.shape == (2,) and scored.isfinite().all(), reward
followed = media.clone().requires_grad_(True)
difalign.load_reward("tiny-clip").score(followed, prompts).scores.sum().backward()
assert followed.grad.norm() > 0
sys.stdout.write("scored " + " ".join(f"{score:.3f}" for score in scores.tolist()))
"""


def test_sampling_and_scoring_without_them(tmp_path: Path):
    """An environment of links to everything that is installed but them, and nothing else on the path."""
    site = Path(sysconfig.get_paths()["purelib"])
    for entry in site.iterdir():
        if not entry.name.lower().startswith(_LEFT_OUT) and not entry.name.endswith(".pth"):
            (tmp_path / entry.name).symlink_to(entry)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-W", "ignore", "-c", PROGRAM],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("scored ")
