"""The same trainer on random FLUX and Qwen-Image pipelines: from files to weights, and as many rows as forecast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign import api
from difalign.build.cards import load_pipeline_card
from difalign.build.forecast import forecast_run, rows_a_forward
from difalign.build.latents import latent_shape
from difalign.build.plans import build_plans
from difalign.build.preflight import prepare
from difalign.build.run import run_flow_grpo
from difalign.build.targets import resolve_target
from difalign.core.errors import ConfigError
from difalign.core.overrides import load_config
from difalign.pipelines.packed import PackedFamily, PackedPipeline
from tests.build.random_runs import write_run
from tests.tiny_packed import tiny_flux, tiny_qwen_image
from tests.train.small_runs import WEIGHTS, rows_of

TRAIN = ("a red circle", "two blue squares", "a green cross above a blue circle", "a blue circle and a red cross")
HELDOUT = ("a red square", "a green circle")


@dataclass(frozen=True, slots=True)
class Model:
    """A tiny pipeline, its adapter and kind of guidance, and the rows a forward that its scale of 3 takes."""

    build: Callable[[], Any]
    target: str
    kind: str
    rows: int


MODELS = {
    "flux": Model(tiny_flux, "difalign.pipelines.flux:FLUX", "embedded", 1),
    "qwen": Model(tiny_qwen_image, "difalign.pipelines.qwen_image:QWEN_IMAGE", "classifier_free", 2),
}


def write_card(folder: Path, model: Model) -> Path:
    model.build().save_pretrained(folder / "weights")
    card = folder / "random.yaml"
    card.write_text(
        f"name: random\nsummary: random weights\ntarget: {model.target}\nguidance_kind: {model.kind}\n"
        "licence: Apache-2.0\npath: weights\nheight: 16\nwidth: 16\nsize_multiple: 4\n"
        "options:\n  max_sequence_length: 12\n"
    )
    return card


@pytest.mark.parametrize("name", MODELS)
def test_a_run_trains_and_computes_as_many_rows_as_forecast(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name]
    sampling = {"steps": 4, "guidance": 3.0, "samples_per_prompt": 3, "micro_batch": 6}
    file = write_run(
        write_card(tmp_path, model),
        train=TRAIN,
        heldout=HELDOUT,
        sampling={**sampling, "plan": {"kind": "branch", "mode": "early_k", "k": 2, "children": 2}},
        objective={"clip_range": 0.01, "filter_zero_variance": False},
        training={"micro_batch": 6, "rollouts": 1, "ema": {"enabled": False}, "auto_micro_batch": False},
        evaluation={"steps": 3, "guidance": 3.0, "seeds_per_prompt": 1},
        guards={"reload": False},  # whose pictures are no part of a plan
    )
    config, computed = load_config(file, [f"output_dir={tmp_path / 'run'}"]), []
    velocity = PackedPipeline._velocity

    def counted(self: PackedPipeline, tokens: Tensor, *rest: Any) -> Tensor:
        computed.append(tokens.shape[0])
        return velocity(self, tokens, *rest)

    monkeypatch.setattr(PackedPipeline, "_velocity", counted)
    inputs = prepare(config)
    assert latent_shape(inputs.pipeline) == (4, 8, 8)
    summary = run_flow_grpo(inputs)
    kind = inputs.pipeline.card.guidance_kind
    run = forecast_run(config, lambda rollout: build_plans(config, rollout=rollout), heldout=2, guidance_kind=kind)
    assert run.sampling_forwards == summary["denoiser_forwards"]
    assert run.sampling_network_rows == model.rows * run.sampling_forwards
    trained = run.training_rows + run.diagnostic_rows
    assert sum(computed) == run.sampling_network_rows + run.evaluation_network_rows + model.rows * trained
    (row,) = rows_of(tmp_path / "run")
    assert row["ratio_max_deviation"] == 0.0
    assert row["grad_norm"] > 0
    plain = model.build()
    plain.load_lora_weights(str(tmp_path / "run" / WEIGHTS))
    assert any("lora_B" in key and bool(p.any()) for key, p in plain.transformer.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_without_a_card_is_known_by_its_class(name: str, tmp_path: Path) -> None:
    MODELS[name].build().save_pretrained(tmp_path)
    found = load_pipeline_card(str(tmp_path))
    assert (found.card.target, found.card.guidance_kind) == (MODELS[name].target, MODELS[name].kind)
    assert latent_shape(found, height=16, width=32) == (4, 8, 16)
    assert latent_shape(found) is None  # no file names diffusers' default size
    assert isinstance(api.load_pipeline(tmp_path), PackedPipeline)


@pytest.mark.parametrize(
    ("name", "kind", "latent"),
    [
        ("flux-dev", "embedded", (16, 128, 128)),
        ("flux-schnell", "none", (16, 128, 128)),
        ("qwen-image", "classifier_free", (16, 166, 166)),
    ],
)
def test_cards_of_the_published_models(name: str, kind: str, latent: tuple[int, int, int]) -> None:
    found = load_pipeline_card(name)
    assert found.card.guidance_kind == kind
    assert latent_shape(found) == latent
    adapter = resolve_target(found.card.target)
    assert isinstance(adapter, PackedFamily)
    assert set(found.card.lora_targets) == set(adapter.lora_targets)


def test_only_a_branch_of_its_own_makes_guidance_cost_rows() -> None:
    assert [rows_a_forward(3.5, kind) for kind in ("classifier_free", "embedded", "none")] == [2, 1, 1]
    assert rows_a_forward(1.0, "classifier_free") == 1
    assert rows_a_forward(3.5) == 2


def test_guidance_of_a_network_that_takes_none_is_named_before_it_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "schnell.yaml"
    file.write_text("pipeline: flux-schnell\nsampling: {guidance: 3.5}\nevaluation: {guidance: 2.0}\n")
    with pytest.raises(ConfigError) as caught:
        prepare(load_config(file), check_output=False, check_weights=False)
    said = str(caught.value)
    assert "sampling.guidance = 3.5: the network of pipeline 'flux-schnell' takes no guidance" in said
    assert "use evaluation.guidance=1" in said
    prepare(
        load_config(file, ["sampling.guidance=1", "evaluation.guidance=1"]), check_output=False, check_weights=False
    )


def test_sampling_goes_through_the_public_function(tmp_path: Path) -> None:
    samples = api.sample(write_card(tmp_path, MODELS["qwen"]), list(TRAIN[:2]), seed=3, steps=3, guidance=2.0)
    assert samples.pixels.shape == (2, 3, 16, 16)
    assert bool(torch.isfinite(samples.pixels).all())
