"""The weights that a run leaves behind, and whether a reader gets from them what the run had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from difalign.core.config import RunConfig
from difalign.core.protocols import Pipeline, Rereadable, TrainablePipeline
from difalign.report.alarms import Alarm
from difalign.rollout.engine import rollout
from difalign.rollout.plans import deterministic
from difalign.train.evaluation import evaluation_seed
from difalign.train.scoring import decode_in_batches

_LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it
_NETWORK_FOLDER = "network"
_PROMPTS = 2  # whose pictures are compared
_TOLERANCE = {torch.float32: 1e-4}  # mean difference of a pixel in [0, 1]; the same kernels run, so 0 is expected
_TOLERANCE_IN_HALF = 2e-2  # adapters are trained in float32, and diffusers holds them in the base's precision


Weights = Mapping[str, Tensor]  # the state of a network


def export_folder(config: RunConfig, run_folder: Path) -> Path:
    """The folder to give to diffusers."""
    return run_folder if config.training.trainable == "lora" else run_folder / _NETWORK_FOLDER


def save_trained(pipeline: TrainablePipeline, config: RunConfig, folder: Path, weights: Weights | None) -> None:
    """Write adapters or the whole network into ``folder``, as diffusers reads them.

    Args:
        pipeline: with the weights to be written.
        config: says which.
        folder: where to.
        weights: of the whole network, where the pipeline holds but a part of them.
    """
    if config.training.trainable == "lora":
        pipeline.tuning.save_lora(folder)
    else:
        pipeline.tuning.save_network(folder, weights=weights)


def remove_exported(run_folder: Path) -> None:
    """Remove what was written into ``export_folder``: a run that fails must not leave another's weights behind."""
    (run_folder / _LORA_FILE).unlink(missing_ok=True)
    network = run_folder / _NETWORK_FOLDER
    for path in (network / "config.json", *network.glob("diffusion_pytorch_model*")):
        path.unlink(missing_ok=True)


def check_export(
    pipeline: TrainablePipeline, folder: Path, prompts: Sequence[str], config: RunConfig, *, done: int, update: int
) -> Alarm | None:
    """Read exported weights back as a user would and compare pictures; None if they are the same, or cannot be read.

    Args:
        pipeline: with the weights that were exported.
        folder: where they are.
        prompts: of which the first ones are drawn.
        config: how; as in evaluation.
        done, update: rollouts and updates behind them, for the alarm.
    """
    pipeline = pipeline.with_guidance(config.evaluation.guidance)
    if not isinstance(pipeline, Rereadable):
        return None
    texts = list(dict.fromkeys(prompts))[:_PROMPTS]
    tolerance = _TOLERANCE.get(next(pipeline.network.parameters()).dtype, _TOLERANCE_IN_HALF)
    try:
        reread = pipeline.reread(folder)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        return _alarm(f"diffusers cannot read the weights in {folder} ({error})", done, update, None, tolerance)
    own, others = (_pictures(each, texts, config) for each in (pipeline, reread))
    difference = float((own - others).abs().mean())
    if difference <= tolerance:  # False for a difference that is no number
        return None
    seen = f"pictures from the weights in {folder} differ by {difference:.3g} a pixel, above {tolerance:g}"
    return _alarm(seen, done, update, difference, tolerance)


def _pictures(pipeline: Pipeline, texts: Sequence[str], config: RunConfig) -> torch.Tensor:
    batch = config.evaluation.micro_batch
    walk = rollout(
        pipeline,
        (deterministic(config.evaluation.steps),),
        condition=pipeline.encode(texts),
        prompt_index=torch.arange(len(texts)),
        root_seeds=[evaluation_seed(text, 0) for text in texts],
        micro_batch=batch,
    )
    return decode_in_batches(pipeline, walk.final, micro_batch=batch)


def _alarm(seen: str, done: int, update: int, value: float | None, limit: float) -> Alarm:
    return Alarm(
        "export_differs",
        done,
        update,
        seen=f"{seen}, when read back by plain diffusers",
        remedy="use a checkpoint of the run instead of the exported file, and compare the versions of diffusers and "
        "peft with those that the documentation names",
        value=value,
        limit=limit,
    )
