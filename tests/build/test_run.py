"""A whole run on a random SD3, from configuration files to weights that plain diffusers reads."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from difalign import api
from difalign.build.cards import load_pipeline_card
from difalign.build.factory import build_pipeline, build_process, build_reward
from difalign.build.plans import build_plans
from difalign.build.preflight import prepare
from difalign.build.run import build_trainable
from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError
from difalign.core.overrides import load_config
from difalign.pipelines import lora
from difalign.pipelines.sd3 import SD3Pipeline
from difalign.report.images import read_tiles, to_uint8
from difalign.rollout.trie import count_forwards, count_leaves
from difalign.train.evaluation import EvaluationPlan, EvaluationResult, evaluate
from difalign.train.runtime import Runtime
from tests.tiny_models import tiny_sd3
from tests.train.small_runs import WEIGHTS, rows_of, write_random_sd3, write_redness

TRAIN = ("a red circle", "two blue squares", "a green cross", "a blue circle and a red cross")
HELDOUT = (("a red square", "single"), ("a green circle", "single"), ("a red cross above a blue square", "relation"))

# The verifier tells the pictures of a random network apart by nothing: what can be learnt is their redness.
CONFIG = """
pipeline: {folder}/random_sd3.yaml
rewards:
  verifier:
    weight: 0.5
  colour:
    card: {folder}/redness.yaml
    weight: 2.0
    options:
      scale: 3
prompts:
  train: {folder}/train.txt
  heldout: {folder}/heldout.jsonl
seed: 3
sampling:
  steps: 4
  prompts_per_update: 2
  samples_per_prompt: 4
  micro_batch: 8
  plan:
    kind: plain
    last_step_noise: false
objective:
  clip_range: 0.01
  kl:
    kind: gaussian
    beta: 0.01
training:
  learning_rate: 0.02
  lora:
    rank: 2
    alpha: 6 # a scale of 3: a reader that loses alpha gives other images
  rollouts: 2
  updates_per_rollout: 2
  micro_batch: 8
  ema:
    every: 1
    max_decay: 0.5
evaluation:
  steps: 3
  guidance: 2.0
  seeds_per_prompt: 2
  micro_batch: 4
  bootstrap_samples: 200
"""


@dataclass(frozen=True)
class Finished:
    """The run that these tests look at, and the files that it was made of."""

    inputs: Path
    folder: Path
    summary: dict[str, Any]

    @property
    def config(self) -> RunConfig:
        return load_config(self.folder / "config.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run the configuration once, through the public function."""
    inputs = tmp_path_factory.mktemp("inputs")
    write_random_sd3(inputs)
    write_redness(inputs)
    (inputs / "train.txt").write_text("\n".join(TRAIN))
    heldout = [json.dumps({"prompt": text, "kind": kind}) for text, kind in HELDOUT]
    (inputs / "heldout.jsonl").write_text("\n".join(heldout))
    (inputs / "mine.yaml").write_text(CONFIG.format(folder=inputs))
    folder = inputs / "run"
    summary = api.train(inputs / "mine.yaml", overrides=[f"output_dir={folder}"])
    return Finished(inputs, folder, summary)


def pipeline_of(finished: Finished, *, guidance: float = 1.0) -> SD3Pipeline:
    """The random SD3 before training."""
    card = load_pipeline_card(str(finished.inputs / "random_sd3.yaml"))
    loaded = build_pipeline(card, process=build_process("flow_grpo"), guidance=guidance, device="cpu")
    assert isinstance(loaded, SD3Pipeline)
    return loaded


def heldout(finished: Finished, pipeline: SD3Pipeline, *, micro_batch: int = 4) -> EvaluationResult:
    """The run's own evaluation, outside the run."""
    config = finished.config
    inputs = prepare(config, check_output=False)
    return evaluate(
        pipeline.with_guidance(config.evaluation.guidance),
        build_reward(inputs.rewards, config.rewards, device="cpu"),
        inputs.heldout_prompts,
        EvaluationPlan(config.evaluation.steps, config.evaluation.seeds_per_prompt, micro_batch),
        Runtime(),
        rollout_index=0,
        label="base",
    )


def stored(finished: Finished, number: int) -> list[dict[str, float]]:
    text = (finished.folder / "evaluations" / f"{number:06d}.json").read_text()
    return [record["scores"] for record in json.loads(text)["records"]]


@torch.no_grad()
def diffusers_images(pipe: Any) -> Tensor:
    sources = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipe(
        list(TRAIN[:2]),
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=sources,
        output_type="pt",
        max_sequence_length=0,
    ).images


def test_summary_has_every_figure(finished: Finished) -> None:
    summary = finished.summary
    assert json.loads((finished.folder / "summary.json").read_text()) == summary
    needed = {"base", "tuned", "gain", "gain_ci95", "per_category", "seconds", "seed"}
    assert needed | {"denoiser_forwards", "reward_calls"} <= set(summary)
    assert summary["name"] == "mine"  # called after its file
    assert set(summary["per_category"]) == {"single", "relation"}
    assert summary["gain"] == pytest.approx(summary["tuned"] - summary["base"], abs=1e-12)
    assert summary["gain"] != 0.0
    means = [sum(scores["total"] for scores in stored(finished, n)) / 6 for n in (0, 2)]
    assert [summary["base"], summary["tuned"]] == pytest.approx(means, abs=1e-12)


def test_counts_are_the_arithmetic_of_the_plan(finished: Finished) -> None:
    plans, roots = build_plans(finished.config, rollout=0), 2 * 2 * 2 * 4
    assert finished.summary["denoiser_forwards"] == count_forwards(plans, roots) == roots * 4
    assert finished.summary["reward_calls"] == count_leaves(plans, roots) == roots
    assert finished.summary["evaluation_forwards"] == 2 * 6 * 3


def test_metrics_are_finite_and_start_on_policy(finished: Finished) -> None:
    rows = rows_of(finished.folder)
    assert [(row["rollout"], row["update"]) for row in rows] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert max(rows[0]["ratio_max_deviation"], rows[2]["ratio_max_deviation"]) < 1e-6  # float32, rows in other places
    assert min(rows[1]["ratio_max_deviation"], rows[3]["ratio_max_deviation"]) > 1e-6
    assert rows[0]["kl"] < 1e-9 < rows[1]["kl"]
    names = {"reward/verifier", "reward/verifier/strict", "reward/verifier/partial", "reward/colour"}
    assert all(names <= set(row) for row in rows)


def test_total_is_the_weighted_sum_of_the_parts(finished: Finished) -> None:
    for scores in (*stored(finished, 0), *stored(finished, 2)):
        assert scores["total"] == pytest.approx(0.5 * scores["verifier"] + 2.0 * scores["colour"], abs=1e-6)
        assert scores["verifier"] == pytest.approx(
            0.5 * scores["verifier/strict"] + 0.5 * scores["verifier/partial"], abs=1e-6
        )


def test_configuration_reads_back_with_every_default(finished: Finished) -> None:
    given = load_config(finished.inputs / "mine.yaml", [f"output_dir={finished.folder}"])
    assert finished.config == given
    assert "noise_level: 0.7" in (finished.folder / "config.yaml").read_text()


def test_evaluation_before_training_is_repeated_exactly_by_a_fresh_pipeline(finished: Finished) -> None:
    again = heldout(finished, pipeline_of(finished))
    assert [dict(record.scores) for record in again.evaluation.records] == stored(finished, 0)
    assert again.images is not None
    tiles = read_tiles(finished.folder / "evaluations" / "000000.png")
    keys = [again.evaluation.records[index].key for index in again.shown]
    for key, pixels in zip(keys, to_uint8(again.images), strict=True):
        assert bytes(tiles[key].tobytes()) == pixels.tobytes()


def test_evaluation_after_training_is_that_of_the_saved_weights(finished: Finished) -> None:
    """The moving average was evaluated and saved: the file alone gives the same scores."""
    tuned = pipeline_of(finished)
    tuned.tuning.load_lora(finished.folder)
    again = heldout(finished, tuned)
    for record, expected in zip(again.evaluation.records, stored(finished, 2), strict=True):
        assert dict(record.scores) == pytest.approx(expected, abs=1e-6)


def test_evaluation_does_not_depend_on_micro_batches(finished: Finished) -> None:
    one_by_one = heldout(finished, pipeline_of(finished), micro_batch=1)
    for record, expected in zip(one_by_one.evaluation.records, stored(finished, 0), strict=True):
        assert dict(record.scores) == pytest.approx(expected, abs=1e-5)


def test_plain_diffusers_reads_the_adapters_and_makes_the_same_images(finished: Finished) -> None:
    tuned = pipeline_of(finished)
    tuned.tuning.load_lora(finished.folder)
    plain = tiny_sd3()
    base = diffusers_images(plain)
    plain.load_lora_weights(str(finished.folder))
    with_adapters = diffusers_images(plain)
    assert torch.equal(with_adapters, diffusers_images(tuned.diffusers_pipeline))
    assert not torch.allclose(with_adapters, base, atol=1e-3)
    assert (finished.folder / WEIGHTS).is_file()


def test_used_folder_is_refused_before_a_model_is_loaded(finished: Finished) -> None:
    before = (finished.folder / "summary.json").read_bytes()
    with pytest.raises(ConfigError, match=r"already holds a run; use output_dir=.*, or overwrite=true"):
        api.train(finished.inputs / "mine.yaml", overrides=[f"output_dir={finished.folder}"])
    assert (finished.folder / "summary.json").read_bytes() == before


# --- what is built -----------------------------------------------------------------------------------------------


def trainable(finished: Finished, *settings: str) -> SD3Pipeline:
    config = load_config(finished.inputs / "mine.yaml", [f"output_dir={finished.inputs}/other", *settings])
    pipeline = build_trainable(prepare(config), Runtime())
    assert isinstance(pipeline, SD3Pipeline)
    return pipeline


def test_adapters_are_those_of_the_configuration(finished: Finished) -> None:
    pipeline = trainable(finished, "training.lora.targets=[attn.to_q]", "training.lora.rank=3", "sampling.guidance=1.5")
    assert pipeline.guidance_scale == 1.5
    adapted = {name for name, parameter in pipeline.network.named_parameters() if parameter.requires_grad}
    assert adapted
    assert all(".attn.to_q.lora_" in name for name in adapted)
    assert {parameter.shape[0] for parameter in pipeline.tuning.trainable_parameters()} >= {3}


def test_full_training_frees_every_weight_in_float32(finished: Finished) -> None:
    pipeline = trainable(finished, "training.trainable=full")
    assert not lora.is_attached(pipeline.network)
    assert all(parameter.requires_grad for parameter in pipeline.network.parameters())
    assert {parameter.dtype for parameter in pipeline.network.parameters()} == {torch.float32}
    with pipeline.tuning.reference():  # kept, because the run measures its divergence from it
        pass


def test_gradient_checkpointing_is_switched_on(finished: Finished) -> None:
    assert not trainable(finished).network.is_gradient_checkpointing
    assert trainable(finished, "training.gradient_checkpointing=true").network.is_gradient_checkpointing


def test_training_under_guidance_with_the_unconditional_branch_detached_or_not(finished: Finished) -> None:
    """Both sample the same pictures; the gradient through the unconditional branch is what sets the updates apart."""
    moved = []
    for detach in ("true", "false"):
        folder = finished.inputs / f"guided-{detach}"
        short = ["training.rollouts=1", "training.updates_per_rollout=1", f"training.detach_uncond={detach}"]
        api.train(finished.inputs / "mine.yaml", overrides=[f"output_dir={folder}", "sampling.guidance=3.0", *short])
        (row,) = rows_of(folder)
        assert row["ratio_max_deviation"] <= 1e-6
        moved.append((row["reward"], row["grad_norm"], load_file(folder / WEIGHTS)))
    (reward, norm, weights), (other_reward, other_norm, other_weights) = moved
    assert reward == other_reward
    assert norm != pytest.approx(other_norm, rel=0.01)
    assert any(not torch.equal(weights[name], other_weights[name]) for name in weights)
    assert reward != rows_of(finished.folder)[0]["reward"]  # without guidance
