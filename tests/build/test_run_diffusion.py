"""The same trainer on a diffusion model: a random Stable Diffusion from files to weights that plain diffusers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from difalign import api
from difalign.build.cards import load_pipeline_card
from difalign.build.preflight import prepare
from difalign.core.errors import ConfigError
from difalign.core.overrides import load_config
from difalign.pipelines.unet import UNetPipeline
from difalign.process.diffusion import DiffusionProcess
from tests.build.random_runs import write_run
from tests.tiny_models import ddim, tiny_sd, tiny_sdxl
from tests.train.small_runs import WEIGHTS, rows_of, write_random_sd, write_random_sd3

TRAIN = ("a red circle", "two blue squares", "a green cross", "a blue circle and a red cross")
HELDOUT = ("a red square", "a green circle", "a red cross above a blue square")
SECTIONS: dict[str, Any] = {
    "sampling": {"steps": 4, "guidance": 2.0, "samples_per_prompt": 4, "micro_batch": 8},
    "objective": {"clip_range": 0.01, "timestep_fraction": 1.0},
    "training": {"micro_batch": 8, "ema": {"enabled": False}},
    "evaluation": {"steps": 3, "micro_batch": 4},
}


def write_inputs(folder: Path, *, scheduler: Any = None) -> Path:
    return write_run(write_random_sd(folder, scheduler=scheduler), train=TRAIN, heldout=HELDOUT, **SECTIONS)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs")).parent


@pytest.fixture(scope="module")
def run(inputs: Path) -> tuple[Path, dict[str, Any]]:
    """Run the configuration once, through the public function."""
    folder = inputs / "run"
    return folder, api.train(inputs / "mine.yaml", overrides=[f"output_dir={folder}"])


def test_a_run_leaves_what_a_run_leaves(run: tuple[Path, dict[str, Any]]):
    folder, summary = run
    assert summary["rollouts"] == summary["updates"] == 2
    rows = rows_of(folder)
    # 2 prompts x 4 samples x 4 steps, all trained: with this schedule the last step carries noise.
    assert [row["rows"] for row in rows] == [32, 32]
    assert all(row["grad_norm"] > 0 for row in rows)
    assert (folder / WEIGHTS).is_file()
    assert (folder / "report.html").is_file()


def test_the_first_ratio_is_exactly_one(run: tuple[Path, dict[str, Any]]):
    assert rows_of(run[0])[0]["ratio_max_deviation"] == 0.0


def test_the_written_configuration_says_what_was_taken(run: tuple[Path, dict[str, Any]]):
    config = load_config(run[0] / "config.yaml")
    assert (config.sampling.rule, config.sampling.noise_level) == ("ddim", 1.0)


@torch.no_grad()
def test_plain_diffusers_draws_with_the_trained_weights(run: tuple[Path, dict[str, Any]], inputs: Path):
    folder, prompt = run[0], "a red square"
    ours = api.load_pipeline(inputs / "random_sd.yaml", guidance=2.0)
    assert isinstance(ours, UNetPipeline)
    ours.tuning.load_lora(folder)
    plain = tiny_sd(scheduler=ddim())
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"}

    def images(pipe: Any) -> torch.Tensor:
        return pipe(prompt, generator=torch.Generator().manual_seed(1), **options).images

    base = images(plain)
    plain.load_lora_weights(str(folder))
    tuned = images(plain)
    assert not torch.allclose(base, tuned, atol=1e-3)
    torch.testing.assert_close(images(ours.diffusers_pipeline), tuned, rtol=1e-4, atol=1e-4)


def test_a_folder_without_a_card_is_known_by_its_class(tmp_path: Path):
    tiny_sd().save_pretrained(tmp_path / "sd")
    tiny_sdxl().save_pretrained(tmp_path / "sdxl")
    for name in ("sd", "sdxl"):
        card = load_pipeline_card(str(tmp_path / name)).card
        assert card.family == "diffusion"
        loaded = api.load_pipeline(tmp_path / name)
        assert isinstance(loaded, UNetPipeline)
        assert isinstance(loaded.process, DiffusionProcess)


def test_sampling_goes_through_the_public_function(inputs: Path):
    samples = api.sample(inputs / "random_sd.yaml", ["a red circle", "two blue squares"], seed=3, steps=3)
    assert samples.pixels.shape == (2, 3, 16, 16)
    assert samples.forwards == 6


# --- what does not go together -------------------------------------------------------------------------------------


def problem(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(load_config(file, overrides), check_output=False)
    return str(caught.value)


@pytest.mark.parametrize("rule", ["flow_grpo", "dance", "wan", "cps", "ddim_eta"])
def test_rules_of_flow_models_are_refused(inputs: Path, rule: str):
    said = problem(inputs / "mine.yaml", f"sampling.rule={rule}", "objective.timestep_fraction=0.75")
    assert f"sampling.rule = {rule}: is not a rule of diffusion models" in said
    assert "'random-sd'" in said
    assert "one of: ddim" in said


def test_rules_of_diffusion_models_are_refused(inputs: Path):
    write_random_sd3(inputs)
    said = problem(inputs / "mine.yaml", "sampling.rule=ddim", f"pipeline={inputs}/random_sd3.yaml")
    assert "sampling.rule = ddim: is not a rule of flow models" in said
    assert "flow_grpo, dance, wan, cps, ddim_eta" in said


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("objective.kl.kind=flow_grpo", "objective.kl.kind=gaussian"),
        ("objective.weight=inverse_step_size", "objective.weight=noise_aware"),
        ("sampling.noise_level=1.2", "must be at most 1 with sampling.rule = ddim"),
    ],
)
def test_formulas_of_flow_models_are_refused(inputs: Path, override: str, remedy: str):
    assert remedy in problem(inputs / "mine.yaml", override)


def test_defaults_are_those_of_the_family_and_what_is_given_stays(inputs: Path):
    file = inputs / "mine.yaml"
    given = prepare(load_config(file, ["sampling.noise_level=0.5"]), check_output=False).config
    assert (given.sampling.rule, given.sampling.noise_level) == ("ddim", 0.5)
    write_random_sd3(inputs)
    flow = prepare(load_config(file, [f"pipeline={inputs}/random_sd3.yaml"]), check_output=False).config
    assert (flow.sampling.rule, flow.sampling.noise_level) == ("flow_grpo", 0.7)


def test_a_last_step_without_noise_is_refused_before_training(tmp_path: Path):
    """Only the loaded schedule says so: here the last alpha is one."""
    file = write_inputs(tmp_path, scheduler=ddim(set_alpha_to_one=True))
    output = f"output_dir={tmp_path / 'run'}"
    with pytest.raises(ConfigError, match=r"steps \[3\] are .* carry no noise .*timestep_fraction=0.75"):
        api.train(file, overrides=[output])
    assert not (tmp_path / "run").exists()
    summary = api.train(file, overrides=[output, "objective.timestep_fraction=0.75", "training.rollouts=1"])
    assert rows_of(tmp_path / "run")[0]["rows"] == 24
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["updates"] == summary["updates"] == 1
