"""A run is ready or every reason why not is given; nothing is written either way."""

from __future__ import annotations

from pathlib import Path

import pytest

from difalign.build.preflight import Inputs, prepare
from difalign.core.errors import ConfigError
from difalign.core.overrides import load_config


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A definition folder with one pipeline and one reward, and the working folder of the test."""
    for name, text in {
        "pipelines/mine.yaml": "name: mine\nsummary: s\ntarget: tests.toys:C\nlicence: MIT\npath: weights\n"
        "size_multiple: 8\n",
        "pipelines/weights/model_index.json": "{}",
        "reward_models/verifier.yaml": "name: verifier\nsummary: s\ntarget: tests.toys:R\nlicence: MIT\n"
        "prompt_reader: difalign.embedded.scenes:parse_caption\n",
        "train.txt": "a red circle\na blue square\na red circle and a blue square\n",
        "heldout.jsonl": '{"prompt": "three red circles", "kind": "mine"}\n{"prompt": "two red circles"}\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(root: Path, *settings: str, processes: int = 1, check_output: bool = True) -> Inputs:
    given = {
        "pipeline": "mine",
        "prompts.train": "train.txt",
        "prompts.heldout": "heldout.jsonl",
        "sampling.prompts_per_update": "1",
        **dict(setting.split("=", 1) for setting in settings),
    }
    config = load_config(None, [f"{key}={value}" for key, value in given.items()])
    return prepare(config, processes=processes, check_output=check_output, roots=[root])


def test_sound_run(root: Path):
    before = sorted(root.rglob("*"))
    inputs = prepared(root)
    assert inputs.pipeline.card.name == "mine"
    assert list(inputs.rewards) == ["verifier"]
    assert [prompt.text for prompt in inputs.train_prompts][:2] == ["a red circle", "a blue square"]
    assert sorted(root.rglob("*")) == before


def test_prompts_are_categorised_by_the_reward_unless_they_say_it_themselves(root: Path):
    inputs = prepared(root)
    assert [prompt.kind for prompt in inputs.train_prompts] == ["single", "single", "two"]
    assert [prompt.kind for prompt in inputs.heldout_prompts] == ["mine", "count"]


def test_a_reward_is_told_what_it_needs_beside_every_prompt(root: Path):
    card = root / "reward_models" / "verifier.yaml"
    card.write_text(card.read_text() + "needs: [target]\n")
    with pytest.raises(
        ConfigError, match=r"prompts\.train = .*'target' beside every prompt, and 'a red circle'.*2 others"
    ):
        prepared(root)
    for name in ("train", "heldout"):
        (root / f"{name}.jsonl").write_text('{"prompt": "a red circle", "target": "x"}\n')
    inputs = prepared(root, "prompts.train=train.jsonl", "training.updates_per_rollout=1")
    assert inputs.train_prompts[0].metadata == {"target": "x"}


def test_a_reader_of_prompts_is_told_what_stands_beside_them(root: Path):
    card = root / "reward_models" / "verifier.yaml"
    reader = "difalign.reward_models.target_text:read_target_text"
    card.write_text(card.read_text().replace("difalign.embedded.scenes:parse_caption", reader))
    with pytest.raises(ConfigError, match=r"cannot score 'a red circle': .*which text is to be shown"):
        prepared(root)
    for name in ("train", "heldout"):
        (root / f"{name}.jsonl").write_text('{"prompt": "a red circle", "target_text": "x"}\n')
    assert prepared(root, "prompts.train=train.jsonl", "training.updates_per_rollout=1").train_prompts


def test_a_library_that_a_reward_lacks_is_named_with_the_extra_that_brings_it(root: Path):
    card = root / "reward_models" / "verifier.yaml"
    card.write_text(card.read_text() + "requires: [json, no_such_library]\n")
    with pytest.raises(
        ConfigError, match=r"rewards\.verifier: needs no_such_library, not.*pip install 'difalign\[rewards\]'"
    ):
        prepared(root)


def test_every_problem_is_named(root: Path):
    (root / "pipelines" / "weights" / "model_index.json").unlink()
    with pytest.raises(ConfigError) as error:
        prepared(root, "prompts.heldout=none.txt", "sampling.width=20", "sampling.prompts_per_update=2", "name=mine")
    message = str(error.value)
    assert message.startswith("4 problems")
    for said in ("none.txt", "sampling.width = 20", "sampling.width=16", "weights are not at", "holds 3 prompts"):
        assert said in message


def test_reward_is_named_by_its_entry_unless_that_names_a_card(root: Path):
    (root / "r.yaml").write_text("name: r\nsummary: s\ntarget: tests.toys:R\nlicence: MIT\n")
    inputs = prepared(root, "rewards.mine.card=verifier", "rewards.mine.weight=2", "rewards.path.card=./r.yaml")
    assert {name: found.card.name for name, found in inputs.rewards.items()} == {"mine": "verifier", "path": "r"}


def test_reward_whose_weights_are_missing_is_named(root: Path):
    (root / "r.yaml").write_text("name: r\nsummary: s\ntarget: tests.toys:R\nlicence: MIT\npath: scorer\n")
    with pytest.raises(ConfigError, match=r"rewards\.mine: its weights are not at .*scorer; .*r\.yaml"):
        prepared(root, "rewards.mine.card=./r.yaml")
    (root / "scorer").mkdir()
    assert prepared(root, "rewards.mine.card=./r.yaml").rewards["mine"].card.path == "scorer"


def test_processes_without_work(root: Path):
    prepared(root, "sampling.prompts_per_update=1", processes=1)
    with pytest.raises(ConfigError, match=r"sampling\.prompts_per_update=2 or fewer processes"):
        prepared(root, processes=2)


def test_output_folder(root: Path):
    out = root / "runs" / "run"
    out.mkdir(parents=True)
    prepared(root)  # an empty folder is fine
    (out / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="use output_dir=runs/run-2, or overwrite=true"):
        prepared(root)
    (root / "runs" / "run-2").mkdir()
    with pytest.raises(ConfigError, match="use output_dir=runs/run-3"):
        prepared(root)
    prepared(root, "overwrite=true")
    prepared(root, check_output=False)


def test_foreign_files_are_never_overwritten(root: Path):
    with pytest.raises(ConfigError, match="not of a run"):
        prepared(root, "output_dir=.", "overwrite=true")


def test_dangling_link_is_no_folder(root: Path):
    (root / "link").symlink_to(root / "nowhere")
    with pytest.raises(ConfigError, match="is not a folder"):
        prepared(root, "output_dir=link")
