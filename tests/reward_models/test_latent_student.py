"""The network of latent students and the reward over it: how it begins, what it depends on, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from difalign.core.protocols import Movable, ReadsEstimates
from difalign.core.student_bank import (
    BankLevel,
    StudentBank,
    TextReader,
    file_sha256,
    read_bank,
    reward_sha256,
    write_bank,
)
from difalign.core.types import Reading
from difalign.reward_models.latent_network import LatentNetwork, LatentNetworkConfig, cut_patches
from difalign.reward_models.latent_student import LatentStudent
from difalign.reward_models.noise_aware import NoiseAwareReward, StudentSpan
from tests.teachers import linear_reward
from tests.train.latent_lessons import BlackBox, Directions

CONFIG = LatentNetworkConfig(
    channels=2, height=4, width=6, text_width=2, sources=("guided", "conditional"), hidden=16, depth=2, heads=2
)
PROMPTS = ["more", "less", "more or less"]


def taught(config: LatentNetworkConfig = CONFIG) -> LatentNetwork:
    """A network as after training: nothing in it is 0."""
    network, source = LatentNetwork(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=source))
    spread = torch.rand(config.shape[0], generator=source) + 0.5
    network.standardise(
        latents=(spread - 1, spread), texts=(torch.zeros(2), torch.ones(2)), target=torch.tensor([2.0, 4.0, 9.0])
    )
    return network


def latents(rows: int = 3, *, seed: int = 0) -> Tensor:
    return torch.randn(rows, *CONFIG.shape, generator=torch.Generator().manual_seed(seed))


def student() -> LatentStudent:
    return LatentStudent(taught(), Directions([]))


def write(
    folder: Path, network: LatentNetwork, *, teacher: str = "black-box", reader: TextReader | None = None
) -> Path:
    folder.mkdir()
    save_file(network.state_dict(), folder / "a.safetensors")
    read = Reading(network.config.sources, decoded=False)
    found = [
        BankLevel(s, "a.safetensors", file_sha256(folder / "a.safetensors"), 1, 1.0, 0.5, read) for s in (0.4, 0.8)
    ]
    known = TextReader("directions", 2) if reader is None else reader
    make = network.config.to_json()
    bank = StudentBank(
        teacher, None, (0.4, 0.8), tuple(found), kind="latent", span=(0.4, 0.8), reader=known, network=make
    )
    write_bank(folder, bank)
    return folder


def test_a_new_network_says_the_mean_of_what_it_is_taught():
    network = LatentNetwork(CONFIG)
    network.standardise(
        latents=(torch.zeros(4), torch.ones(4)), texts=(torch.zeros(2), torch.ones(2)), target=torch.tensor([1.0, 4.0])
    )
    found = network(latents(), torch.tensor([0.1, 0.5, 0.9]), torch.eye(2)[[0, 1, 0]])
    assert torch.equal(found, torch.full((3,), 2.5))
    assert float(network.target_std) == pytest.approx(1.5)


def test_the_seed_decides_the_first_weights_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    first, again, other = (LatentNetwork(CONFIG, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["patches.weight"], other["patches.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rows_are_scored_each_by_itself():
    reward, x = student(), latents(5)
    prompts, order = [PROMPTS[i] for i in (0, 1, 2, 0, 1)], [3, 0, 4, 2, 1]
    together = reward.score(x, prompts, sigma=0.5).scores
    turned = reward.score(x[order], [prompts[i] for i in order], sigma=0.5).scores
    assert torch.allclose(turned, together[order], atol=1e-5)
    small = LatentStudent(taught(), Directions([]), micro_batch=2).score(x, prompts, sigma=0.5).scores
    assert torch.allclose(small, together, atol=1e-5)
    assert float(together.std()) > 0.05


def test_noise_prompt_and_every_part_of_the_latents_decide():
    reward, x = student(), latents(1)
    at = reward.score(x, ["more"], sigma=0.5).scores
    assert not torch.allclose(reward.score(x, ["more"], sigma=0.51).scores, at, atol=1e-4)
    assert not torch.allclose(reward.score(x, ["less"], sigma=0.5).scores, at, atol=1e-4)
    x = x.requires_grad_()
    reward.score(x, ["more"], sigma=0.5).scores.sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())


def test_channels_are_standardised():
    """In other units of a channel, with constants of these units, nothing changes."""
    network, x = taught(), latents()
    said, noise = torch.eye(2)[[0, 1, 0]], torch.full((3,), 0.3)
    expected = network(x, noise, said)
    scale = torch.tensor([2.0, 0.5, 3.0, 1.0])[:, None, None]
    network.latent_mean.copy_(network.latent_mean * scale + 1)
    network.latent_std.copy_(network.latent_std * scale)
    assert torch.allclose(network(x * scale + 1, noise, said), expected, atol=1e-5)


def test_what_never_varied_is_not_blown_up():
    network = LatentNetwork(CONFIG)
    network.standardise(
        latents=(torch.zeros(4), torch.zeros(4)), texts=(torch.ones(2), torch.zeros(2)), target=torch.tensor([3.0, 3.0])
    )
    constants = (network.latent_std, network.text_std, network.target_std)
    assert all(torch.equal(std, torch.ones_like(std)) for std in constants)


def test_patches_are_squares_row_by_row():
    x = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    cut = cut_patches(x, 2)
    assert cut.shape == (1, 6, 8)
    assert cut[0, 4].tolist() == x[0, :, 2:4, 2:4].flatten().tolist()


@pytest.mark.parametrize("changes", [{"readout": "mean"}, {"text_tokens": 3}, {"patch": 1}])
def test_other_makes_read_everything_as_well(changes: dict[str, int]):
    config = replace(CONFIG, **changes)
    reward, x = LatentStudent(taught(config), Directions([])), latents(1).requires_grad_()
    reward.score(x, ["more"], sigma=0.5).scores.sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())
    assert LatentNetworkConfig.from_json(config.to_json()) == config


def test_low_precision_weights_score_in_float32():
    network, x = taught(), latents()
    noise, said = torch.full((3,), 0.5), torch.eye(2)[[0, 1, 0]]
    expected = network(x, noise, said)
    found = network.to(torch.bfloat16)(x, noise, said)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=0.3)


def test_a_bank_answers_its_levels_and_its_range_and_the_teacher_the_rest(tmp_path: Path):
    folder, alone, teacher = write(tmp_path / "b", taught()), student(), BlackBox()
    bank = NoiseAwareReward.from_pretrained(folder, teacher=teacher, reader=Directions([]))
    assert isinstance(bank, ReadsEstimates)
    assert isinstance(bank, Movable)
    for sigma in (0.4, 0.8, 0.6):
        assert bank.reading(sigma) == Reading(("guided", "conditional"), decoded=False)
        found = bank.score(latents(), PROMPTS, sigma=sigma).scores
        assert torch.allclose(found, alone.score(latents(), PROMPTS, sigma=sigma).scores, atol=1e-5)
    loaded = bank._scorer(0.4)
    assert isinstance(loaded, LatentStudent)
    assert loaded is bank._scorer(0.8) is bank._scorer(0.6)
    own, written = loaded.model.state_dict(), taught().state_dict()
    assert own.keys() == written.keys()
    assert all(torch.equal(own[name], written[name]) for name in own)
    with pytest.raises(ValueError, match=r"only for 0\.4, 0\.8, and from 0\.4 to 0\.8"):
        bank.reading(0.3)
    pixels = torch.rand(3, 3, 4, 4)
    for sigma in (None, 0.0):
        assert torch.equal(bank.score(pixels, PROMPTS, sigma=sigma).scores, teacher.score(pixels, PROMPTS).scores)
    assert bank.reading(0.0) == Reading()


def test_fallbacks_say_what_they_read(tmp_path: Path):
    folder, reader = write(tmp_path / "b", taught()), Directions([])
    by = NoiseAwareReward.from_pretrained(folder, teacher=BlackBox(), reader=reader, fallback="teacher")
    assert by.reading(0.9) == Reading()
    near = NoiseAwareReward.from_pretrained(folder, teacher=BlackBox(), reader=reader, fallback="nearest")
    assert near.reading(0.9).decoded is False
    told = near.score(latents(), PROMPTS, sigma=0.9).scores
    assert torch.allclose(told, near.score(latents(), PROMPTS, sigma=0.8).scores, atol=1e-5)
    assert not torch.allclose(told, student().score(latents(), PROMPTS, sigma=0.9).scores, atol=1e-3)


def test_readings_are_the_banks_then_the_students_then_pictures():
    decoded = Reading(("conditional",))
    teacher = linear_reward(torch.ones(12))
    bank = NoiseAwareReward(teacher, {0.2: teacher, 0.4: teacher, 0.6: student()}, readings={0.2: decoded})
    assert [bank.reading(s) for s in (0.2, 0.4)] == [decoded, Reading()]
    assert bank.reading(0.6).decoded is False
    only = NoiseAwareReward(teacher, {}, span=StudentSpan(0.1, 0.3, student()))
    assert only.level_of(0.25) == 0.25
    assert only.reading(0.25).decoded is False


def test_another_teacher_or_reader_is_refused(tmp_path: Path):
    folder = write(tmp_path / "b", taught())
    with pytest.raises(ValueError, match="taught by 'black-box', not by 'linear'"):
        NoiseAwareReward.from_pretrained(folder, teacher=linear_reward(torch.ones(12)), reader=Directions([]))
    with pytest.raises(ValueError, match="give reader: directions in the card"):
        NoiseAwareReward.from_pretrained(folder, teacher=BlackBox())
    known = TextReader("linear", 2, reward_sha256(linear_reward(torch.ones(12))))
    assert known.sha256 is not None
    other = write(tmp_path / "c", taught(), reader=known)
    with pytest.raises(ValueError, match="by 'linear' with other weights"):
        NoiseAwareReward.from_pretrained(other, teacher=BlackBox(), reader=Directions([]))


def test_descriptions_round_trip_and_old_ones_are_read(tmp_path: Path):
    folder = write(tmp_path / "b", taught())
    bank = read_bank(folder)
    assert bank.network == CONFIG.to_json()
    assert bank.levels[0].reading == Reading(("guided", "conditional"), decoded=False)
    level = '{"sigma": 0.5, "file": "a", "sha256": "0", "steps": 1, "first_loss": 1.0, "last_loss": 0.5}'
    old = f'{{"format": 1, "teacher": "t", "teacher_sha256": "1", "curriculum": [0.5], "levels": [{level}]}}'
    (tmp_path / "bank.json").write_text(old)
    found = read_bank(tmp_path)
    assert (found.kind, found.span, found.levels[0].reading) == ("full", None, Reading())


def test_banks_that_cannot_be_loaded(tmp_path: Path):
    folder = write(tmp_path / "b", taught())
    bank = read_bank(folder)
    for changed, said in (
        (replace(bank, kind="graft"), "kind 'graft'"),
        (replace(bank, network={**CONFIG.to_json(), "hidden": 17}), "multiple of heads"),
        (replace(bank, network={"hidden": 17}), "no description of a latent network"),
        (replace(bank, network={**CONFIG.to_json(), "depth": 1}), "checkpoint of another model"),
        (replace(bank, reader=None), "does not say who reads"),
    ):
        write_bank(folder, changed)
        with pytest.raises(ValueError, match=said):
            NoiseAwareReward.from_pretrained(folder, teacher=BlackBox(), reader=Directions([]))
    with pytest.raises(ValueError, match="span"):
        replace(bank, span=(0.8, 0.4))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda r: r.score(latents(), PROMPTS), "sigma = None"),
        (lambda r: r.score(latents(), PROMPTS, sigma=0.0), "noise above 0"),
        (lambda r: r.score(latents()[:, :2], PROMPTS, sigma=0.5), r"latents \[N, 4, 4, 6\] of guided \+ conditional"),
        (lambda r: r.score(latents().int(), PROMPTS, sigma=0.5), "int32"),
        (lambda r: r.score(latents(), PROMPTS[:2], sigma=0.5), "3 rows of latents but 2 prompts"),
        (lambda r: r.score(latents() / 0, PROMPTS, sigma=0.5), "not finite"),
    ],
)
def test_what_cannot_be_scored(ask: Callable[[LatentStudent], object], said: str):
    with pytest.raises(ValueError, match=said):
        ask(student())


@pytest.mark.parametrize(
    "change",
    [
        {"patch": 3},
        {"heads": 3},
        {"sources": ()},
        {"sources": ("guided", "guided")},
        {"readout": "last"},
        {"text_tokens": 0},
        {"depth": 0},
    ],
)
def test_makes_that_are_none(change: dict[str, int]):
    with pytest.raises(ValueError, match=r"must be|multiple of patch|each once|use one of"):
        replace(CONFIG, **change)
