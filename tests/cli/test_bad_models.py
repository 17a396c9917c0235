"""Cards that cannot be right, and pipelines of which a part is missing or damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.bad_input import Bad, Outcome, assert_refused, meet, meet_alone, named, setting
from tests.house.repository import ROOT

_SHIPPED = ROOT / "pipelines" / "tiny-sd3"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
_CARD = "name: mine\nsummary: s\ntarget: {target}\nlicence: MIT\npath: {path}\n"
_SD3 = "difalign.pipelines.sd3:SD3Pipeline"


def damaged(name: str, damage: Callable[[Path], object], *said: str) -> Bad:
    """The shipped pipeline in a folder of its own, without a card, after ``damage``."""

    def copy(folder: Path) -> None:
        shutil.copytree(_SHIPPED, folder / "model")
        damage(folder / "model")

    return Bad(name, ("train", "pipeline=./model"), said, prepare=copy)


def card(name: str, text: str, *said: str) -> Bad:
    return Bad(name, ("train", "pipeline=./c.yaml"), said, {"c.yaml": text})


def reward(name: str, text: str, *said: str) -> Bad:
    return Bad(name, ("train", "rewards.mine.card=./r.yaml"), ("rewards.mine", *said), {"r.yaml": text})


def cut(file: str, size: int) -> Callable[[Path], object]:
    return lambda model: os.truncate(model / file, size)


def lengthen(file: str) -> Callable[[Path], object]:
    return lambda model: (model / file).write_bytes((model / file).read_bytes() + b"\0" * 8)


def remove(name: str) -> Callable[[Path], object]:
    return lambda model: shutil.rmtree(model / name) if (model / name).is_dir() else (model / name).unlink()


def write(file: str, text: str) -> Callable[[Path], object]:
    return lambda model: (model / file).write_text(text)


def half_of_the_shards(model: Path) -> None:
    vae = model / "vae"
    (vae / _WEIGHTS).rename(vae / "a-00001-of-00002.safetensors")
    shards = {"x": "a-00001-of-00002.safetensors", "y": "a-00002-of-00002.safetensors"}
    (vae / f"{_WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))


PARTS = [
    damaged("part missing", remove("vae"), "its part 'vae' (AutoencoderKL) is missing", "copy it there"),
    damaged("text encoder missing", remove("text_encoder_2"), "its part 'text_encoder_2'", "is missing"),
    damaged("weights missing", remove(f"transformer/{_WEIGHTS}"), "'transformer'", "there are no weights in"),
    damaged("weights cut off", cut(f"vae/{_WEIGHTS}", 60_000), _WEIGHTS, "has 60000 bytes where its header says"),
    damaged("weights too long", lengthen(f"vae/{_WEIGHTS}"), _WEIGHTS, "bytes where its header says", "copy it again"),
    damaged("weights cut off in the header", cut(f"vae/{_WEIGHTS}", 40), "has 40 bytes and no safetensors header"),
    damaged("weights empty", cut(f"vae/{_WEIGHTS}", 0), "has 0 bytes and no safetensors header", "copy it again"),
    damaged("pointer in place of weights", write(f"vae/{_WEIGHTS}", _POINTER), "a pointer of Git LFS", "git lfs pull"),
    damaged("shard missing", half_of_the_shards, "a-00002-of-00002.safetensors", "copy it there"),
    damaged("index of shards broken", write(f"vae/{_WEIGHTS}.index.json", "{"), "is no index of shards"),
    damaged("configuration missing", remove("vae/config.json"), "'vae'", "has no configuration in", "config.json"),
    damaged("configuration broken", write("vae/config.json", "{"), "vae/config.json is not JSON", "copy it again"),
    damaged("scheduler missing", remove("scheduler/scheduler_config.json"), "'scheduler'", "scheduler_config.json"),
    damaged("vocabulary missing", remove("tokenizer/tokenizer.json"), "'tokenizer'", "has no vocabulary in"),
    damaged("index broken", write("model_index.json", "{"), "model_index.json", "save it with save_pretrained"),
    damaged(
        "index that is a list", write("model_index.json", "[]"), "model_index.json", "save it with save_pretrained"
    ),
    damaged("index missing", remove("model_index.json"), "is a folder without model_index.json", "save_pretrained"),
    damaged(
        "pipeline of an unknown family",
        write("model_index.json", '{"_class_name": "KolorsPipeline"}'),
        "holds a KolorsPipeline, which has no adapter",
        "known: StableDiffusion3Pipeline",
    ),
]
CARDS = [
    setting(
        "unknown pipeline", "pipeline=tiny-sd4", "'tiny-sd4'", "did you mean 'tiny-sd3'?", "known: ", "sd35-medium"
    ),
    setting("missing card", "pipeline=./my.yaml", "./my.yaml: no such file", "tiny-sd3"),
    card("empty card", "", "c.yaml: must hold `key: value` lines", "name, summary, target, licence"),
    card("card without a target", "name: mine\nsummary: s\nlicence: MIT\npath: a\n", "target: missing", "module:Class"),
    card("target that is none", _CARD.format(target="nonsense", path="a"), "'nonsense'", "package.module:Class"),
    card("target that is nowhere", _CARD.format(target="no.such:A", path=_SHIPPED), "no module 'no'", "PYTHONPATH"),
    card("misspelt key of a card", _CARD.format(target=_SD3, path=_SHIPPED) + "stepz: 3\n", "did you mean steps?"),
    card(
        "unknown family", _CARD.format(target=_SD3, path=_SHIPPED) + "family: diffusin\n", "did you mean 'diffusion'?"
    ),
    card(
        "two sources", _CARD.format(target=_SD3, path="a") + "hub_id: a/b\n", "path, hub_id: give exactly one of them"
    ),
    card("weights that are nowhere", _CARD.format(target=_SD3, path="a"), "its weights are not at a", "correct `path`"),
    card(
        "weights of another model",
        _CARD.format(target="difalign.pipelines.sdxl:SDXL", path=_SHIPPED),
        "holds a StableDiffusion3Pipeline",
        "is for a StableDiffusionXLPipeline",
        "correct `path` or `target`",
    ),
    setting("size off the grid", "sampling.height=40", "sampling.height = 40", "sampling.height=36"),
]
REWARDS = [
    setting(
        "unknown reward", "rewards.verifyer.weight=1", "'verifyer'", "did you mean 'verifier'?", "known: ", "verifier"
    ),
    setting("unknown option", "rewards.verifier.options.strict=1", "options.strict", "did you mean 'strict_share'?"),
    setting("option of the wrong type", "rewards.verifier.options.strict_share=half", "'half'", "its default, 0.5"),
    setting("option that is a list", "rewards.verifier.options.strict_share=[1]", "strict_share = [1]", "a number"),
    setting(
        "constants that the card has not",
        "rewards.verifier.scale={kind: fixed, constants: mixgrpo}",
        "rewards.verifier: scale.constants = 'mixgrpo'",
        "the card has none",
        "give mean and std",
    ),
    setting(
        "unit without measurements",
        "rewards.verifier.scale.kind=fixed",
        "rewards.verifier: scale.kind = 'fixed': verifier has no measured statistics",
        "give scale.mean and scale.std",
    ),
    setting(
        "half a unit",
        "rewards.verifier.scale={kind: fixed, mean: 1.0}",
        "rewards.verifier.scale",
        "give both or neither",
    ),
    setting(
        "constants of no use",
        "rewards.verifier.scale={kind: rank, std: 2.0}",
        "std: are used only with kind: fixed",
    ),
    setting("gate without a bar", "rewards.verifier.gate={otherwise: 0.0}", "rewards.verifier.gate.at_least"),
    setting("weights that are none", "rewards.verifier.on_error=zero", "on_error = 'zero'", "raise, drop"),
    setting("no reward left", "rewards.verifier=null", "rewards = {}", "not empty"),
    setting("missing reward card", "rewards.mine.card=./r.yaml", "rewards.mine", "./r.yaml: no such file"),
    reward("reward that is nowhere", "name: r\nsummary: s\ntarget: no.such:C\nlicence: MIT\n", "no module 'no'"),
    reward(
        "reader that is nowhere",
        "name: r\nsummary: s\ntarget: a:C\nlicence: MIT\nprompt_reader: no.such:f\n",
        "there is no module",
        "PYTHONPATH",
    ),
    reward("options that are none", "name: r\nsummary: s\ntarget: a:C\nlicence: MIT\noptions: 3\n", "options = 3"),
]
CASES = [*PARTS, *CARDS, *REWARDS]
CONTROLS = [
    Bad(
        "whole copy",
        ("config", "validate", "pipeline=./model"),
        (),
        prepare=lambda at: shutil.copytree(_SHIPPED, at / "model"),
    )
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return meet([*CASES, *CONTROLS], tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_model_is_refused(bad: Bad, outcomes: dict[str, Outcome]):
    assert_refused(bad, outcomes[bad.name])


def test_whole_copy_passes(outcomes: dict[str, Outcome]):
    assert (outcomes["whole copy"].code, outcomes["whole copy"].stderr) == (0, "")


@pytest.mark.parametrize("bad", named(CASES, "part missing", "unknown reward"), ids=lambda bad: bad.name)
def test_model_is_refused_by_a_process_of_its_own(bad: Bad, tmp_path: Path):
    assert_refused(bad, meet_alone(bad, tmp_path))
