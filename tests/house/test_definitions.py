"""Every card loads and names something that exists; every configuration is sound down to its prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from difalign.build.cards import list_pipelines, list_rewards, load_pipeline_card, load_reward_card, reward_options
from difalign.build.definitions import find_file
from difalign.build.search_preflight import prepare_search
from difalign.build.search_settings import SearchSettings, find_defaults
from difalign.build.targets import resolve_target
from difalign.core.overrides import load_config
from difalign.core.prompts import read_prompts
from tests.house.repository import DEFINITION_FOLDERS, ROOT, relative


def yaml_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.yaml"))


@pytest.mark.parametrize("folder", DEFINITION_FOLDERS)
def test_folder_defines_something(folder: str):
    assert yaml_files(folder)


@pytest.mark.parametrize("file", yaml_files("pipelines"), ids=relative)
def test_pipeline_card_loads(file: Path):
    found = load_pipeline_card(str(file))
    assert callable(resolve_target(found.card.target))
    weights = found.weights()
    if isinstance(weights, Path):
        assert (weights / "model_index.json").is_file()


@pytest.mark.parametrize("file", yaml_files("reward_models"), ids=relative)
def test_reward_card_loads(file: Path):
    card = load_reward_card(str(file)).card
    assert callable(resolve_target(card.target))
    if card.prompt_reader is not None:
        assert callable(resolve_target(card.prompt_reader))


def test_every_card_is_found_by_its_name():
    assert {found.file for found in list_pipelines()} >= set(yaml_files("pipelines"))
    assert {found.file for found in list_rewards()} >= set(yaml_files("reward_models"))


@pytest.mark.parametrize("file", yaml_files("configs"), ids=relative)
def test_config_builds(file: Path):
    config = load_config(file)
    assert load_pipeline_card(config.pipeline).card.name
    for name, reward in config.rewards.items():
        reward_options(load_reward_card(name).card, reward)
    train = read_prompts(find_file(config.prompts.train))
    heldout = read_prompts(find_file(config.prompts.heldout))
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in heldout}


@pytest.mark.parametrize("file", yaml_files("configs/search"), ids=relative)
def test_defaults_of_a_search_are_a_search(file: Path):
    name = file.stem.replace("_", "-")
    assert name in {found.card.name for found in list_pipelines()}
    inputs = prepare_search(SearchSettings(pipeline=name, prompt=("two red circles",), dry_run=True))
    assert (inputs.method, inputs.budget["candidates"]) == (find_defaults(name).method, find_defaults(name).candidates)
    for judged, judge in find_defaults(name).previews.items():
        assert load_reward_card(judged).card.name
        assert load_reward_card(judge).card.name


def test_defaults_build():
    config = load_config(None)
    assert load_pipeline_card(config.pipeline).card.name
    assert read_prompts(find_file(config.prompts.train))
    assert read_prompts(find_file(config.prompts.heldout))
