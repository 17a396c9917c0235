"""A distillation of the shipped models, stage by stage: what it leaves, what it goes on with, what it refuses."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from difalign.build.distill import Workbench, run_distill
from difalign.build.distill_inputs import STAGES, prepare_distill
from difalign.core.config_distill import DistillConfig, load_distill_config
from difalign.core.errors import ConfigError
from difalign.core.student_bank import read_bank
from difalign.core.types import Reading
from difalign.embedded.scenes import is_held_out, parse_caption
from difalign.train.estimate_store import EstimateStore
from difalign.train.progress import progress_view
from difalign.train.runtime import Runtime
from tests.house.repository import ROOT

TINY = ROOT / "configs" / "distill" / "tiny.yaml"
SMALL = (
    "prompts.scenes=4",
    "prompts.heldout_limit=3",
    "sampling.steps=4",
    "sampling.sigmas=[0.667, 0.334]",
    "sampling.samples_per_prompt=4",
    "sampling.shard_rows=6",
    "students.guided.batch_size=8",
    "students.guided.epochs=1",
    "students.conditional.epochs=1",
    "evaluation.samples_per_prompt=5",
    "evaluation.pictures=2",
)


def small(folder: Path, *settings: str) -> DistillConfig:
    given = {setting.partition("=")[0]: setting for setting in (*SMALL, f"folder={folder}", *settings)}
    return load_distill_config(TINY, list(given.values()))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    run_distill(prepare_distill(small(folder)), STAGES)
    return folder


def test_every_stage_leaves_what_the_next_one_needs(done: Path):
    assert len(list((done / "train").glob("*.safetensors"))) == len(list((done / "train").glob("*.labels.json"))) == 3
    bank = read_bank(done / "students" / "guided")
    assert bank.complete
    assert [level.steps for level in bank.levels] == [2, 2]
    assert bank.curriculum[0] < bank.curriculum[1]
    found = json.loads((done / "evaluation.json").read_text())
    judges = [row["judge"] for row in found["rows"]]
    assert set(judges) == {
        "tiny-clip as it is, guided",
        "tiny-clip as it is, conditional",
        "students guided, guided",
        "students conditional, conditional",
    }
    assert len(judges) == 8
    assert found["heldout"] == {"prompts": 3, "samples": 5, "left_out": 0}
    assert all(row["measures"]["squared_error"]["mean"] > 0 for row in found["rows"])
    assert (done / "evaluation.md").read_text().count("students guided") == 2
    for name in ("evaluation.png", "estimates.png"):
        with Image.open(done / name) as picture:
            assert picture.width > 300


def test_training_prompts_are_not_held_out(done: Path):
    prompts = [entry["prompt"] for entry in json.loads((done / "train" / "index.json").read_text())["prompts"]]
    assert len(prompts) == 4
    assert not any(is_held_out(parse_caption(prompt)) for prompt in prompts)


def test_what_is_done_is_not_done_again(done: Path):
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")}

    before = times()
    run_distill(prepare_distill(small(done)), ("generate", "train"))
    assert times() == before


@pytest.mark.parametrize(
    ("setting", "stage", "said"),
    [
        ("sampling.guidance=2.0", "label", r"estimates of other settings: guidance = 4\.0 there, 2\.0 here"),
        ("prompts.scenes=5", "generate", r"other prompts \(4 there, 5 here\)"),
        ("seed=1", "train", "seed = 0 there, 1 here"),
        ("teacher.options={scale: logit}", "label", "another teacher's, or of other weights"),
        ("students.guided.learning_rate=0.5", "train", "another learning_rate"),
        ("students.guided.sources=[conditional]", "train", "another source"),
    ],
)
def test_a_folder_of_other_settings_is_refused(done: Path, setting: str, stage: str, said: str):
    settings = [setting] if setting != "seed=1" else [setting, "prompts.train=samples/prompts/tiny_train.jsonl"]
    settings += ["prompts.scenes=null", "prompts.limit=4"] if setting == "seed=1" else []
    with pytest.raises(ConfigError, match=said):
        run_distill(prepare_distill(small(done, *settings)), (stage,))


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("label", "run the stage generate first"),
        ("train", "run the stage generate first"),
        ("evaluate", "run the stage generate first"),
    ],
)
def test_stages_come_in_order(tmp_path: Path, stage: str, said: str):
    with pytest.raises(ConfigError, match=said):
        run_distill(prepare_distill(small(tmp_path)), (stage,))


def test_a_level_that_the_grid_lacks_is_named_with_those_it_has(tmp_path: Path):
    config = small(tmp_path, "sampling.sigmas=[0.6]")
    with pytest.raises(
        ConfigError, match=r"sampling\.sigmas: sigma = 0\.6: no step of this grid starts there.*0\.6670"
    ):
        run_distill(prepare_distill(config), ("generate",))


def test_pictures_that_are_stored_teach_as_latents_do(done: Path, tmp_path: Path):
    """The scorer reads 8 bits and resizes nothing here, so that half precision of the latents is all that differs."""
    run_distill(prepare_distill(small(tmp_path, "sampling.store=pixels")), STAGES[:2])
    runtime = Runtime()
    tables = []
    with progress_view(is_main=False) as view:
        for folder, kind in ((done, "latents"), (tmp_path, "pixels")):
            work = Workbench(prepare_distill(small(folder, f"sampling.store={kind}")), runtime, view)
            store = work.store("train")
            tables.append(work.table(store, "conditional"))
        latents, pictures = tables
        rows, sigma = torch.tensor([15, 0, 7]), max(store.level(asked) for asked in store.sigmas)
        difference = (latents.media(sigma, rows) - pictures.media(sigma, rows)).abs().max()
    runtime.close()
    assert difference <= 2 / 255
    assert torch.allclose(latents.target, pictures.target, atol=1e-5)


def test_each_student_is_taught_what_it_reads(done: Path):
    guided, conditional = (read_bank(done / "students" / name) for name in ("guided", "conditional"))
    assert guided.curriculum == conditional.curriculum
    assert guided.levels[0].first_loss != conditional.levels[0].first_loss


def test_a_latent_student_may_begin_with_its_teachers_tower(tmp_path: Path):
    student = "{kind: latent, start: teacher, sources: [guided, conditional], epochs: 1}"
    config = small(tmp_path, f"students.latents={student}", "evaluation.pictures=0")
    run_distill(
        prepare_distill(config.model_copy(update={"students": {"latents": config.students["latents"]}})), STAGES
    )
    bank = read_bank(tmp_path / "students" / "latents")
    assert bank.network is not None
    assert (bank.network["make"], bank.network["patches"]) == ("tower", 3)
    assert bank.reader is not None
    assert bank.reader.name == "tiny-clip"


def test_a_tower_is_a_clip_teachers(tmp_path: Path):
    student = "{kind: latent, start: teacher, reader: tiny-clip}"
    config = small(tmp_path, "teacher.reward=verifier", f"students.latents={student}")
    config = config.model_copy(update={"students": {"latents": config.students["latents"]}})
    with pytest.raises(ConfigError, match="has no CLIP picture tower"):
        run_distill(prepare_distill(config), STAGES)


def test_a_latent_student_is_taught_by_a_reward_without_weights(tmp_path: Path):
    latent = "{kind: latent, sources: [guided, conditional], reader: tiny-clip, hidden: 16, depth: 1, epochs: 2}"
    config = small(tmp_path, "teacher.reward=verifier", f"students.latents={latent}", "evaluation.pictures=0")
    alone = config.model_copy(update={"students": {"latents": config.students["latents"]}})
    run_distill(prepare_distill(alone), STAGES)
    bank = read_bank(tmp_path / "students" / "latents")
    assert (bank.kind, bank.teacher_sha256) == ("latent", None)
    assert bank.levels[0].reading == Reading(("guided", "conditional"), decoded=False)
    judges = {row["judge"] for row in json.loads((tmp_path / "evaluation.json").read_text())["rows"]}
    assert "students latents, guided + conditional" in judges


def test_students_that_add_to_their_teacher_are_told_apart_by_kind(tmp_path: Path):
    made = {"lora": "{kind: lora, rank: 2, targets: [q_proj]}", "one": "{kind: modulated, hidden: 8, replay: 0.5}"}
    config = small(tmp_path, *(f"students.{name}={text}" for name, text in made.items()), "evaluation.pictures=0")
    alone = config.model_copy(update={"students": {name: config.students[name] for name in made}})
    run_distill(prepare_distill(alone), STAGES)
    lora, one = (read_bank(tmp_path / "students" / name) for name in made)
    assert (lora.kind, one.kind) == ("lora", "modulated")
    assert (lora.network or {})["rank"] == 2
    assert one.recipe["replay"] == 0.5
    assert len({level.file for level in one.levels}) == 1
    assert len({level.file for level in lora.levels}) == 2


def test_a_bank_says_what_each_level_is_handed(done: Path):
    assert [level.reading for level in read_bank(done / "students/conditional").levels] == [
        Reading(("conditional",))
    ] * 2


def test_half_precision_does_not_teach(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"computes in torch\.float16.*use teacher\.options\.dtype=float32"):
        run_distill(prepare_distill(small(tmp_path, "teacher.options={dtype: float16}")), ("generate", "label"))


def test_a_full_disk_is_one_message_and_what_is_whole_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, calls = EstimateStore.write, []

    def fills_up(store: EstimateStore, shard: int, tensors: Mapping[str, Tensor]) -> None:
        calls.append(shard)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(store, shard, tensors)

    monkeypatch.setattr(EstimateStore, "write", fills_up)
    with pytest.raises(ConfigError, match=r"can no longer be written.*make room, and run the same command again"):
        run_distill(prepare_distill(small(tmp_path)), ("generate",))
    assert [path.name for path in (tmp_path / "train").glob("shard_*")] == ["shard_00000.safetensors"]


def test_room_is_looked_for_before_anything_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"has 0\.0 MB free, and the walks that are missing take about 0\.\d MB"):
        run_distill(prepare_distill(small(tmp_path)), ("generate",))


def test_a_teacher_that_is_no_network_cannot_be_copied(tmp_path: Path):
    inputs = prepare_distill(small(tmp_path, "teacher.reward=verifier"))
    run_distill(inputs, ("generate", "label"))
    with pytest.raises(ConfigError, match="'verifier' is not one network whose weights a student could begin with"):
        run_distill(inputs, ("train",))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["pipeline=tiny-sd4"], "tiny-sd3"),
        (["teacher.reward=tiny-clop"], r"^.*teacher.*tiny-clip"),
        (["teacher.options={scales: logit}"], r"teacher.*scale"),
        (["prompts.scenes=9999"], r"prompts\.scenes = 9999: .*ask for 1 to 3410"),
        (["prompts.heldout=nowhere.txt"], "nowhere.txt: no such file"),
        (["prompts.heldout=samples/prompts/objects_heldout.jsonl"], "cannot score 'a photo of a"),
        (["prompts.scenes=null", "prompts.train=samples/prompts/tiny_heldout.jsonl"], "3 prompts are in prompts.train"),
        (["students.new={kind: latent, reader: nobody}"], r"students\.new\.reader = 'nobody'"),
        (["students.new={kind: latent, start: teacher, hidden: 8}"], "hidden: with start: teacher the teacher decides"),
        (
            ["students.new={kind: latent}", "sampling.store=pixels"],
            "reads latents, and sampling.store = pixels keeps none",
        ),
        (["sampling.height=35"], r"sampling\.height = 35.*multiples of"),
    ],
)
def test_what_cannot_start_is_refused_before_anything_is_loaded(tmp_path: Path, settings: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        prepare_distill(small(tmp_path / "new", *settings))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("file", sorted(TINY.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_sound_without_its_weights(file: Path):
    inputs = prepare_distill(load_distill_config(file, []), check_weights=False)
    named = "tiny-sd3" if file.stem.startswith("tiny") else file.stem.replace("_", "-")
    assert inputs.pipeline.card.name == named
    assert len(inputs.prompts["train"]) >= 200


def test_a_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="is not a folder"):
        prepare_distill(small(tmp_path / "taken"))
