"""Cards are found by name or path, made up for a bare diffusers folder, and refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difalign.build.cards import list_pipelines, load_pipeline_card, load_reward_card, reward_options
from difalign.build.definitions import definition_roots, find_file, known_names
from difalign.core.config_rewards import RewardConfig
from difalign.core.errors import ConfigError
from tests.house.repository import ROOT

PIPELINE = "name: my-model\nsummary: s\ntarget: my_pkg.mod:Class\nlicence: MIT\npath: weights\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "pipelines" / "my_model.yaml", PIPELINE)
    write(
        tmp_path / "reward_models" / "taste.yaml",
        "name: taste\nsummary: s\ntarget: my_pkg.mod:Taste\nlicence: MIT\n"
        "options: {share: 0.5, size: 3, prefix: a, strict: false}\n",
    )
    return tmp_path


def test_names_come_from_the_first_folder_that_has_them(root: Path, tmp_path_factory: pytest.TempPathFactory):
    later = tmp_path_factory.mktemp("later")
    write(later / "pipelines" / "my_model.yaml", PIPELINE.replace("summary: s", "summary: later"))
    write(later / "pipelines" / "other.yaml", PIPELINE.replace("my-model", "other"))
    roots = [root, later]
    assert known_names("pipelines", roots) == ("my-model", "other")
    assert load_pipeline_card("my-model", roots).card.summary == "s"
    assert [found.card.name for found in list_pipelines(roots)] == ["my-model", "other"]


def test_the_checkout_comes_before_the_package():
    assert definition_roots() == (ROOT, ROOT / "difalign" / "_shipped")


def test_weights_lie_beside_the_card_wherever_it_is(root: Path):
    assert load_pipeline_card("my_model", [root]).weights() == root / "pipelines" / "weights"
    elsewhere = write(root / "elsewhere" / "card.yaml", PIPELINE)
    assert load_pipeline_card(str(elsewhere)).weights() == root / "elsewhere" / "weights"
    hub = write(root / "hub.yaml", PIPELINE.replace("path: weights", "hub_id: a/b\nrevision: main"))
    assert load_pipeline_card(str(hub)).weights() == "a/b"


def test_reward_has_weights_if_its_card_names_some(root: Path):
    plain = "name: mine\nsummary: s\ntarget: my_pkg.mod:Class\nlicence: MIT\n"
    assert load_reward_card(str(write(root / "plain.yaml", plain))).weights() is None
    assert load_reward_card(str(write(root / "local.yaml", plain + "path: w\n"))).weights() == root / "w"
    assert load_reward_card(str(write(root / "hub.yaml", plain + "hub_id: a/b\n"))).weights() == "a/b"
    with pytest.raises(ConfigError, match="path, hub_id: give exactly one of them, not both"):
        load_reward_card(str(write(root / "both.yaml", plain + "path: w\nhub_id: a/b\n")))


def test_diffusers_folder_without_a_card(root: Path):
    folder = root / "saved"
    write(folder / "model_index.json", json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    found = load_pipeline_card(str(folder), [root])
    assert found.card.target == "difalign.pipelines.sd3:SD3Pipeline"
    assert found.weights() == folder


def test_diffusers_folder_of_a_card_keeps_its_options(root: Path):
    write(root / "pipelines" / "weights" / "model_index.json", json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    assert load_pipeline_card(str(root / "pipelines" / "weights"), [root]).card.name == "my-model"


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ('{"_class_name": "FooPipeline"}', "holds a FooPipeline.*known: StableDiffusion3Pipeline"),
        ("[", "not the index"),
    ],
)
def test_diffusers_folder_of_an_unknown_family(root: Path, index: str, said: str):
    write(root / "saved" / "model_index.json", index)
    with pytest.raises(ConfigError, match=said):
        load_pipeline_card(str(root / "saved"), [root])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PIPELINE + "stepz: 3\n", r"stepz: unknown key; did you mean steps\?"),
        (PIPELINE.replace("path: weights\n", ""), "path, hub_id: give exactly one"),
        (PIPELINE + "hub_id: a/b\n", "path, hub_id: give exactly one"),
        (PIPELINE.replace("my_pkg.mod:Class", "my_pkg.mod.Class"), "target = 'my_pkg.mod.Class'"),
        (PIPELINE.replace("my-model", "other"), "name = 'other': must be the file's own, 'my-model'"),
        (PIPELINE.replace("name: my-model\n", ""), "name: missing"),
        (PIPELINE + "steps: 0\n", "steps = 0: must be an integer >= 1"),
        ("- 1\n", "key: value"),
    ],
)
def test_malformed_cards(root: Path, text: str, said: str):
    write(root / "pipelines" / "my_model.yaml", text)
    with pytest.raises(ConfigError, match=said) as error:
        load_pipeline_card("my-model", [root])
    assert "my_model.yaml" in str(error.value)


def test_unknown_name_lists_the_known_ones(root: Path):
    with pytest.raises(ConfigError, match=r"'tast' is unknown; did you mean 'taste'\? known: taste"):
        load_reward_card("tast", [root])
    with pytest.raises(ConfigError, match="known: none"):
        load_reward_card("x", [root / "nowhere"])


def test_options_lie_over_the_cards(root: Path):
    card = load_reward_card("taste", [root]).card
    given = RewardConfig(options={"share": 1, "strict": True})
    assert reward_options(card, given) == {"share": 1, "size": 3, "prefix": "a", "strict": True}


@pytest.mark.parametrize("options", [{"share": "x"}, {"share": True}, {"size": 1.5}, {"prefix": 3}, {"strict": 1}])
def test_options_of_another_type_are_refused(root: Path, options: dict[str, str | int | float | bool | None]):
    with pytest.raises(ConfigError, match="must be of the type of its default"):
        reward_options(load_reward_card("taste", [root]).card, RewardConfig(options=options))


def test_files_are_taken_as_they_stand_before_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert find_file("samples/prompts/tiny_train.jsonl") == ROOT / "samples" / "prompts" / "tiny_train.jsonl"
    mine = write(tmp_path / "samples" / "prompts" / "tiny_train.jsonl", "{}")
    assert find_file("samples/prompts/tiny_train.jsonl").resolve() == mine
    assert find_file("none.txt") == Path("none.txt")
