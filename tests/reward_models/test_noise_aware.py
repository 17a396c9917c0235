"""The bank of students: the teacher untouched, levels by sigma, folders that hold only what fits."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor

from difalign.core.protocols import Movable, NetworkReward, RewardModel
from difalign.core.student_bank import (
    BANK_FILE,
    BankLevel,
    StudentBank,
    file_sha256,
    read_bank,
    weights_sha256,
    write_bank,
)
from difalign.reward_models.clip import ClipReward
from difalign.reward_models.networks import shared_copy
from difalign.reward_models.noise_aware import SAME_LEVEL, NoiseAwareReward
from difalign.reward_models.preprocessing import ImageInput
from tests.reward_models.pictures import eight_bit_pictures
from tests.teachers import LinearReward, linear_reward
from tests.tiny_models import clip_model, clip_tokenizer

PROMPTS = ["a red circle", "two blue squares", "a green cross above a red square"]
HEAD = "visual_projection.weight"


def clip(seed: int = 3) -> ClipReward:
    tokenizer = clip_tokenizer()
    side = {"height": 24, "width": 24}
    wanted = ImageInput.of_processor(CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=side))
    return ClipReward(clip_model(tokenizer, seed=seed), tokenizer, wanted)


def linear(value: float) -> LinearReward:
    return linear_reward(torch.full((12,), value))


def bank_of(levels: dict[float, float], *, fallback: str = "error") -> NoiseAwareReward:
    return NoiseAwareReward(linear(1.0), {s: linear(v) for s, v in levels.items()}, fallback=fallback)


def ones() -> Tensor:
    return torch.full((1, 3, 2, 2), 1 / 12)  # so that a linear reward scores its weight


def write(folder: Path, teacher: NetworkReward, changes: dict[float, dict[str, Tensor]]) -> Path:
    folder.mkdir()
    levels = []
    for sigma, tensors in changes.items():
        file = f"sigma_{sigma}.safetensors"
        save_file(tensors, folder / file)
        levels.append(BankLevel(sigma, file, file_sha256(folder / file), steps=1, first_loss=1.0, last_loss=0.5))
    digest = weights_sha256(teacher.model.state_dict())
    write_bank(folder, StudentBank(teacher.name, digest, tuple(changes), tuple(levels)))
    return folder


def changed_head(teacher: ClipReward, factor: float) -> dict[str, Tensor]:
    return {HEAD: teacher.model.state_dict()[HEAD].roll(1, 0) * factor}


def test_it_is_a_reward():
    bank = bank_of({0.5: 2.0})
    assert isinstance(bank, RewardModel)
    assert isinstance(bank, Movable)
    assert isinstance(clip(), NetworkReward)
    assert bank.differentiable


@pytest.mark.parametrize("sigma", [None, 0.0])
def test_finished_samples_are_the_teachers_to_the_last_bit(tmp_path: Path, sigma: float | None):
    teacher, alone = clip(), clip()
    bank = NoiseAwareReward.from_pretrained(
        write(tmp_path / "b", teacher, {0.5: changed_head(teacher, 3)}), teacher=teacher
    )
    pixels = eight_bit_pictures(3, 24, 24)
    bank.score(pixels, PROMPTS, sigma=0.5)  # a student that has been asked leaves the teacher as it was
    mine, theirs = pixels.clone().requires_grad_(), pixels.clone().requires_grad_()
    scores, expected = bank.score(mine, PROMPTS, sigma=sigma).scores, alone.score(theirs, PROMPTS).scores
    assert torch.equal(scores, expected)
    scores.sum().backward()
    expected.sum().backward()
    assert mine.grad is not None
    assert theirs.grad is not None
    assert torch.equal(mine.grad, theirs.grad)


def test_each_level_has_its_student_whatever_the_rounding():
    bank = bank_of({0.85: 3.0, 0.2: 2.0})
    assert bank.levels == (0.2, 0.85)
    scores = [float(bank.score(ones(), ["p"], sigma=s).scores) for s in (0.2, 0.85, float(torch.tensor(0.85)), None)]
    assert scores == pytest.approx([2, 3, 3, 1])
    assert bank.level_of(0.85 + 0.5 * SAME_LEVEL) == 0.85


def test_a_missing_level_is_an_error_that_names_those_there_are():
    bank = bank_of({0.2: 2.0, 0.85: 3.0})
    with pytest.raises(ValueError, match=r"sigma = 0\.5.* only for 0\.2, 0\.85"):
        bank.score(ones(), ["p"], sigma=0.5)
    with pytest.raises(ValueError, match="has no student"):
        bank.score(ones(), ["p"], sigma=0.85 + 2 * SAME_LEVEL)


@pytest.mark.parametrize(
    ("fallback", "sigma", "level"),
    [
        ("nearest", 0.5, 0.2),
        ("nearest", 0.6, 0.85),
        ("nearest", 0.05, 0.0),
        ("teacher", 0.6, 0.0),
        ("teacher", 0.2, 0.2),
    ],
)
def test_fallbacks_that_are_asked_for(fallback: str, sigma: float, level: float):
    bank = bank_of({0.2: 0.2, 0.85: 0.85}, fallback=fallback)
    assert bank.level_of(sigma) == level
    assert float(bank.score(ones(), ["p"], sigma=sigma).scores) == pytest.approx(level if level else 1.0)


def test_the_scorer_is_told_the_noise():
    student = linear(2.0)
    NoiseAwareReward(linear(1.0), {0.5: student}).score(ones(), ["p"], sigma=0.5)
    assert student.sigmas == [0.5]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: bank_of({0.5: 1.0}, fallback="cleaner"), "use one of: error, nearest, teacher"),
        (lambda: bank_of({0.0: 1.0}), "at 0 the teacher scores"),
        (lambda: bank_of({math.nan: 1.0}), "sigma = nan"),
        (lambda: bank_of({0.5: 1.0, 0.5 + SAME_LEVEL: 1.0}), "cannot be told apart"),
        (lambda: bank_of({0.5: 1.0}).level_of(-0.1), "at least 0"),
        (lambda: bank_of({0.5: 1.0}).level_of(math.nan), "sigma = nan"),
    ],
)
def test_banks_and_levels_that_make_no_sense(make: Callable[[], object], said: str):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_folder_gives_the_students_that_were_written(tmp_path: Path):
    """Against the teacher's class over a network with the changed tensor; nothing is trainable, nothing drops out."""
    teacher = clip()
    changes = {0.3: changed_head(teacher, 1.0), 0.7: changed_head(teacher, -2.0)}
    bank = NoiseAwareReward.from_pretrained(write(tmp_path / "b", teacher, changes), teacher=teacher)
    pixels = eight_bit_pictures(3, 24, 24)
    for sigma, tensors in changes.items():
        network = copy.deepcopy(teacher.model)
        network.load_state_dict(tensors, strict=False)
        expected = teacher.with_model(network).score(pixels, PROMPTS).scores
        assert torch.allclose(bank.score(pixels, PROMPTS, sigma=sigma).scores, expected, atol=1e-6)
        assert not torch.allclose(expected, teacher.score(pixels, PROMPTS).scores, atol=1e-3)
        student = bank._scorers[sigma]
        assert isinstance(student, ClipReward)
        assert not student.model.training
        assert not any(parameter.requires_grad for parameter in student.model.parameters())
        own, of_teacher = dict(student.model.named_parameters()), dict(teacher.model.named_parameters())
        assert {name for name in own if own[name] is not of_teacher[name]} == {HEAD}


def test_half_precision_files_are_read_in_the_networks_own(tmp_path: Path):
    teacher = clip()
    half = {HEAD: changed_head(teacher, 1.0)[HEAD].half()}
    bank = NoiseAwareReward.from_pretrained(write(tmp_path / "b", teacher, {0.3: half}), teacher=teacher)
    student = bank._scorers[0.3]
    assert isinstance(student, ClipReward)
    assert torch.equal(student.model.visual_projection.weight, half[HEAD].float())


def test_moving_moves_every_network(tmp_path: Path):
    teacher = clip()
    bank = NoiseAwareReward.from_pretrained(
        write(tmp_path / "b", teacher, {0.3: changed_head(teacher, 2)}), teacher=teacher
    )
    bank.to("meta")
    student = bank._scorers[0.3]
    assert isinstance(student, ClipReward)
    for network in (teacher.model, student.model):
        assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}


def test_another_teacher_is_refused(tmp_path: Path):
    folder = write(tmp_path / "b", clip(), {0.3: changed_head(clip(), 2)})
    with pytest.raises(ValueError, match="other weights or in another precision"):
        NoiseAwareReward.from_pretrained(folder, teacher=clip(seed=4))
    half = clip()
    half.model.half()
    with pytest.raises(ValueError, match="other weights or in another precision"):
        NoiseAwareReward.from_pretrained(folder, teacher=half)
    with pytest.raises(ValueError, match="has no `model`"):
        NoiseAwareReward.from_pretrained(folder, teacher=bank_of({0.5: 1.0}))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [({"head.weight": torch.ones(2)}, "head.weight: unknown"), ({HEAD: torch.ones(2, 3)}, f"{HEAD}: .*another shape")],
)
def test_tensors_that_do_not_fit(tmp_path: Path, tensors: dict[str, Tensor], said: str):
    folder = write(tmp_path / "b", clip(), {0.3: tensors})
    with pytest.raises(ValueError, match=said):
        NoiseAwareReward.from_pretrained(folder, teacher=clip())


def test_damaged_folders(tmp_path: Path):
    folder = write(tmp_path / "b", clip(), {0.3: changed_head(clip(), 2)})
    file = folder / "sigma_0.3.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ValueError, match="SHA-256"):
        NoiseAwareReward.from_pretrained(folder, teacher=clip())
    file.unlink()
    with pytest.raises(ValueError, match="there is no such file"):
        NoiseAwareReward.from_pretrained(folder, teacher=clip())
    with pytest.raises(ValueError, match=f"{BANK_FILE}: there is no such file"):
        NoiseAwareReward.from_pretrained(tmp_path, teacher=clip())


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 1, "levels": [], "curriculum": [], "x": 1}'])
def test_descriptions_that_cannot_be_read(tmp_path: Path, text: str):
    (tmp_path / BANK_FILE).write_text(text)
    with pytest.raises(ValueError, match="no whole description"):
        read_bank(tmp_path)


def test_descriptions_round_trip_and_say_their_format(tmp_path: Path):
    level = BankLevel(0.1 + 0.2, "a.safetensors", "0" * 64, steps=3, first_loss=0.1, last_loss=1 / 3)
    bank = StudentBank("clip", "1" * 64, (0.1 + 0.2, 0.5), (level,), {"learning_rate": 3e-6, "lora": None})
    write_bank(tmp_path, bank)
    assert read_bank(tmp_path) == bank
    assert not bank.complete
    content = json.loads((tmp_path / BANK_FILE).read_text())
    (tmp_path / BANK_FILE).write_text(json.dumps({**content, "format": 3}))
    with pytest.raises(ValueError, match="says format 3"):
        read_bank(tmp_path)
    with pytest.raises(ValueError, match="not the first of the curriculum"):
        StudentBank("clip", "1" * 64, (0.5,), (level,))


def test_the_hash_of_weights_sees_every_bit_and_not_the_order():
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    digest = weights_sha256(state)
    assert weights_sha256({"b": state["b"], "a": state["a"]}) == digest
    for other in ({**state, "a": torch.tensor([1.0, 2.0000002])}, {**state, "a": state["a"].half()}, {"a": state["a"]}):
        assert weights_sha256(other) != digest
    assert weights_sha256({"a": torch.ones(2, dtype=torch.bfloat16)})


def test_a_shared_copy_takes_other_tensors_without_the_first():
    network = torch.nn.Linear(2, 1)
    before = network.weight
    twin = shared_copy(network)
    assert twin.weight is before
    twin.load_state_dict({"weight": torch.zeros(1, 2)}, strict=False, assign=True)
    assert network.weight is before
    assert not twin.weight.any()
