"""Checkpoints are found or asked for by name, verified, never run, and loaded whole or not at all."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from difalign.reward_models.checkpoints import (
    check_model_type,
    find_checkpoint,
    load_pretrained,
    load_processor,
    load_strictly,
    load_tokenizer,
    read_state_dict,
)


def network() -> nn.Sequential:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's own offline mode, and a cache with nothing in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_file_of_a_folder(tmp_path: Path):
    (tmp_path / "w.pt").write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    assert find_checkpoint(tmp_path, file="w.pt") == tmp_path / "w.pt"
    assert find_checkpoint(str(tmp_path), file="w.pt", sha256=digest.upper()) == tmp_path / "w.pt"
    wrong = "0" * 64
    with pytest.raises(
        ValueError, match=rf"w\.pt: its SHA-256 is {digest}, but the card says {wrong}; .* fetch it again"
    ):
        find_checkpoint(tmp_path, file="w.pt", sha256=wrong)
    with pytest.raises(ValueError, match=r"x\.pt: there is no such file; put x\.pt into"):
        find_checkpoint(tmp_path, file="x.pt")
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        find_checkpoint(tmp_path / "nowhere", file="w.pt")


def test_offline_it_says_what_to_fetch_and_where_to_put_it():
    with pytest.raises(ValueError) as said:  # noqa: PT011  # the whole message is looked at
        find_checkpoint("some/scorer", file="model.pt", revision="abc")
    for part in (
        "some/scorer: model.pt (revision abc) is not in the cache and could not be fetched",
        "hf download some/scorer model.pt --revision abc",
        "HF_HOME",
        "put the file into a folder of your own and give path: FOLDER in the card",
    ):
        assert part in str(said.value)


def test_offline_repositories_say_the_same():
    from transformers import BertTokenizer, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    with pytest.raises(ValueError, match=r"some/scorer: could not be loaded .*hf download some/scorer --revision abc"):
        load_pretrained(CLIPModel, "some/scorer", dtype=torch.float32, revision="abc")
    with pytest.raises(ValueError, match=r"some/scorer: could not be loaded .*hf download some/scorer`"):
        load_processor(CLIPImageProcessor, "some/scorer", revision=None)
    for tokenizer in (CLIPTokenizer, BertTokenizer):  # of which transformers makes one that knows no word
        with pytest.raises(ValueError, match=r"could not be loaded \(there are no words in its tokenizer\)"):
            load_tokenizer(tokenizer, "some/scorer", revision=None)


def test_every_format_is_read(tmp_path: Path):
    expected = state()
    torch.save(expected, tmp_path / "flat.pt")
    torch.save({"epoch": 3, "state_dict": expected, "optimizer": {"state": [1.0]}}, tmp_path / "nested.pt")
    torch.save(expected, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(expected, tmp_path / "flat.safetensors")
    for found in (
        read_state_dict(tmp_path / "flat.pt"),
        read_state_dict(tmp_path / "nested.pt", within="state_dict"),
        read_state_dict(tmp_path / "old.pth"),
        read_state_dict(tmp_path / "flat.safetensors", within="state_dict"),
    ):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


class Planted:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_would_run_code_is_not_read(tmp_path: Path):
    touched = tmp_path / "touched"
    torch.save({"state_dict": state(), "extra": Planted(touched)}, tmp_path / "planted.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Planted(touched)))
    for name in ("planted.pt", "plain.pt"):
        with pytest.raises(ValueError, match=rf"{name}: holds something else than tensors .* convert it once yourself"):
            read_state_dict(tmp_path / name, within="state_dict")
    assert not touched.exists()


def test_broken_and_other_files_are_named(tmp_path: Path):
    torch.save(state(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-200])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("cut.pt", "cut.safetensors", "empty.pt"):
        with pytest.raises(ValueError, match=name):
            read_state_dict(tmp_path / name)
    with pytest.raises(ValueError, match=r"whole\.pt: has no entry 'model', so it is a checkpoint of another model"):
        read_state_dict(tmp_path / "whole.pt", within="model")
    torch.save({"a": 3}, tmp_path / "numbers.pt")
    with pytest.raises(ValueError, match="holds no mapping of names to tensors"):
        read_state_dict(tmp_path / "numbers.pt")


def test_whole_states_are_loaded_and_buffers_rebuilt():
    expected = state()
    made = network()
    load_strictly(made, expected, source="file")
    assert all(torch.equal(made.state_dict()[key], expected[key]) for key in expected)
    with_buffer = network()
    with_buffer[1].register_buffer("mask", torch.empty(2, device="meta"), persistent=False)
    load_strictly(with_buffer, expected, source="file", rebuilt={"1.mask": torch.ones(2)})
    assert torch.equal(with_buffer[1].get_buffer("mask"), torch.ones(2))


def test_states_of_other_models_are_refused_by_name():
    expected = state()
    missing = {key: value for key, value in expected.items() if key != "0.bias"}
    unknown = {**expected, "9.weight": torch.zeros(1)}
    reshaped = {**expected, "0.weight": torch.zeros(3, 5)}
    for content, message in (
        (missing, r"file: is a checkpoint of another model, or not a whole one: it has no 0\.bias$"),
        (unknown, r"it has unknown 9\.weight$"),
        (reshaped, r"it has in other shapes 0\.weight \(3, 5\) instead of \(3, 2\)$"),
        ({"x": torch.zeros(1)}, r"it has no 0\.bias, 0\.weight, .* and 1 more; it has unknown x$"),
    ):
        with pytest.raises(ValueError, match=message):
            load_strictly(network(), content, source="file")


def test_a_folder_of_another_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ValueError, match="holds a model of type 'blip', not a CLIPModel"):
        check_model_type(tmp_path, "clip", class_name="CLIPModel")
    check_model_type(tmp_path, "blip", class_name="BlipModel")
    check_model_type("some/repository", "clip", class_name="CLIPModel")  # the hub's own files say what it holds
