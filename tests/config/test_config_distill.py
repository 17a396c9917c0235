"""The configuration of a distillation says what is wrong with it before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from difalign.core.config_distill import load_distill_config
from difalign.core.errors import ConfigError
from difalign.core.types import NoiseGrid
from difalign.pipelines.flow_grids import packed_grid, sd3_grid
from tests.house.repository import ROOT

FILES = sorted((ROOT / "configs" / "distill").glob("*.yaml"))
TINY = ROOT / "configs" / "distill" / "tiny.yaml"


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_shipped_configurations_are_sound(file: Path):
    config = load_distill_config(file, [])
    assert config.name == f"distill_{file.stem}"
    assert config.run_folder == Path("runs") / config.name


def test_settings_are_laid_over_the_file():
    config = load_distill_config(TINY, ["folder=~/bank", "students.guided.learning_rate=1e-5", "prompts.scenes=7"])
    assert config.run_folder == Path.home() / "bank"
    assert config.students["guided"].learning_rate == 1e-5
    assert config.students["guided"].batch_size == load_distill_config(TINY, []).students["guided"].batch_size


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["sampling.sigmas=[0.5, 0.5]"], "name each level once"),
        (["sampling.sigmas=[]"], r"sampling\.sigmas = \[\]"),
        (["sampling.sigmas=[0]"], r"sampling\.sigmas.*> 0"),
        (["sampling.sources=[]"], r"sampling\.sources"),
        (["sampling.sources=[x0]"], "guided, conditional, state"),
        (["sampling.sources=[guided, guided]"], "name each once"),
        (["sampling.store=pixels", "sampling.sources=[guided, state]"], "use store=latents"),
        (["sampling.pixels=224"], "with store: latents leave it out"),
        (["prompts.train=a.txt"], "give exactly one of them"),
        (["prompts.scenes=null"], "give exactly one of them"),
        (["prompts.limit=3"], "with scenes, give that number itself"),
        (["students.guided.sources=[state]"], r"students\.guided\.sources: state is not stored"),
        (["students.guided.kind=ful"], r"students\.guided\.kind = 'ful'"),
        (["students.guided.sources=[guided, conditional]"], r"students\.guided\.sources = "),
        (["students.guided.sigmas=[0.123]"], r"students\.guided\.sigmas: \[0\.123\] are not stored"),
        (["students.guided.learning_rte=1"], "did you mean students.guided.learning_rate"),
        (["students.guided.learning_rate=0"], r"students\.guided\.learning_rate = 0"),
        (["evaluation.samples_per_prompt=1"], r"evaluation\.samples_per_prompt = 1"),
        (["evaluation.keep=0"], r"evaluation\.keep = 0"),
    ],
)
def test_what_is_wrong_is_named(settings: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        load_distill_config(TINY, settings)


def starts(scheduler: FlowMatchEulerDiscreteScheduler, grid: Callable[..., NoiseGrid]) -> list[float]:
    """Where 20 steps of 1024 image tokens start: 512 pixels."""
    return grid(scheduler, 20, image_tokens=1024).sigma[:-1].tolist()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("sd35_medium", lambda: starts(FlowMatchEulerDiscreteScheduler(shift=3.0), sd3_grid)),
        ("flux_dev", lambda: starts(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), packed_grid)),
    ],
)
def test_levels_of_real_models_are_where_their_steps_start(name: str, known: Callable[[], list[float]]):
    config = load_distill_config(ROOT / "configs" / "distill" / f"{name}.yaml", [])
    assert (config.sampling.steps, config.sampling.height, config.sampling.width) == (20, 512, 512)
    assert sorted(config.sampling.sigmas, reverse=True) == pytest.approx(known()[:15], abs=5.1e-5)
