"""A shipped configuration made small enough for a test, in counts and never in kind, on a random model of its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from difalign.build.cards import PipelineCard, wrapped_class
from difalign.core.config import RunConfig
from tests.sections import lay_over
from tests.tiny_models import tiny_sd, tiny_sd3, tiny_sdxl
from tests.tiny_packed import tiny_flux, tiny_qwen_image
from tests.train.small_runs import write_redness

TRAIN = ("a red circle", "two blue squares", "a green cross", "a blue circle and a red cross")
HELDOUT = ("a red square", "a green circle")
_ROWS = 64  # a forward; memory only


def published_sdxl() -> Any:
    """A random Stable Diffusion XL, and what the published scheduler's file says beyond the options of its sampler."""
    pipe = tiny_sdxl()
    pipe.scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True)
    return pipe


# Random pipelines by the class that an adapter wraps; a preset of a new family needs a line here.
RANDOM: Mapping[str, Callable[[], Any]] = {
    "StableDiffusion3Pipeline": lambda: tiny_sd3(with_t5=True),
    "FluxPipeline": tiny_flux,
    "QwenImagePipeline": tiny_qwen_image,
    "StableDiffusionPipeline": tiny_sd,
    "StableDiffusionXLPipeline": published_sdxl,
}


def write_random_pipeline(card: PipelineCard, folder: Path) -> Path:
    """Save a random pipeline of the card's class and the card for it, with its layers and options; texts are short."""
    RANDOM[str(wrapped_class(card.target))]().save_pretrained(folder / "weights")
    source = {"path": "weights", "hub_id": None, "revision": None}
    dtype = "float32" if card.dtype == "float16" else card.dtype  # which processors do not calculate in
    small = {"name": "random", "height": None, "width": None, "dtype": dtype, "size_multiple": 1}
    options = {key: min(value, 16) if key == "max_sequence_length" else value for key, value in card.options.items()}
    file = folder / "random.yaml"
    file.write_text(yaml.safe_dump({**card.model_dump(mode="json"), **source, **small, "options": options}))
    return file


def shrunk(config: RunConfig, card: Path, folder: Path) -> RunConfig:
    """The configuration with few prompts, children and steps, small pictures and two updates, everything else as it is.

    A chain keeps its steps where plan or curriculum names some of them. The dry pass and the reading back of saved
    weights, which have tests of their own, are left out.
    """
    for name, prompts in (("train", TRAIN), ("heldout", HELDOUT)):
        (folder / f"{name}.txt").write_text("\n".join(prompts))
    plan, training = config.sampling.plan, config.training
    named = config.curriculum is not None or plan.kind not in ("plain", "branch")
    updates = min(training.updates_per_rollout, 2)
    tree = config.model_dump(mode="json")
    tree["sampling"] = lay_over(
        tree["sampling"],
        {
            "plan": {
                key: min(value, 2) if key == "children" else value for key, value in tree["sampling"]["plan"].items()
            },
            "steps": config.sampling.steps if named else min(config.sampling.steps, 5),
            "prompts_per_update": 2,
            "samples_per_prompt": min(config.sampling.samples_per_prompt, 2),
            "height": 16,
            "width": 16,
            "micro_batch": _ROWS,
        },
    )
    tree["training"] = lay_over(
        tree["training"],
        {
            "lora": {**tree["training"]["lora"], "rank": 2},
            "rollouts": 2 // updates,
            "updates_per_rollout": updates,
            "trajectories_per_update": None if training.trajectories_per_update is None else 2,
            "micro_batch": _ROWS,
            "mixed_precision": "no" if training.mixed_precision == "fp16" else training.mixed_precision,
            "ema": {**tree["training"]["ema"], "every": 1},
            "max_seconds": None,
            "auto_micro_batch": False,
        },
    )
    tree["evaluation"] |= {
        "steps": 2,
        "seeds_per_prompt": 1,
        "every": 0,
        "micro_batch": _ROWS,
        "bootstrap_samples": 100,
    }
    return RunConfig.model_validate(
        {
            **tree,
            "pipeline": str(card),
            "rewards": {"redness": {"card": str(write_redness(folder))}},
            "prompts": {name: str(folder / f"{name}.txt") for name in ("train", "heldout")},
            "output_dir": str(folder / "run"),
            "guards": {**tree["guards"], "reload": False},
        }
    )
