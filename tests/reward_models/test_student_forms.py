"""Students that add to their teacher's network: the teacher at the start, what is trained, what a file holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from difalign.core.protocols import NetworkReward
from difalign.core.student_form import FullForm, StudentForm
from difalign.reward_models.student_forms import LoraForm, ModulatedForm, ModulatedReward
from tests.reward_models.pictures import eight_bit_pictures
from tests.reward_models.test_noise_aware import PROMPTS, clip
from tests.teachers import linear_reward

FORMS: tuple[StudentForm, ...] = (FullForm(), LoraForm(), ModulatedForm(), ModulatedForm(whole=False))


def student_of(form: StudentForm) -> tuple[NetworkReward, NetworkReward]:
    """A teacher and its student at the start; two readings of one file may be rounded apart by where tensors lie."""
    teacher = clip()
    network = copy.deepcopy(teacher.model)
    form.adapt(network)
    return teacher, form.reward(teacher, network)


def pictures() -> Tensor:
    return eight_bit_pictures(3, 24, 24)


@pytest.mark.parametrize("form", FORMS)
def test_a_student_begins_as_its_teacher(form: StudentForm):
    teacher, student = student_of(form)
    for sigma in (None, 0.2, 0.9):
        scores = student.score(pictures(), PROMPTS, sigma=sigma).scores
        assert torch.allclose(scores, teacher.score(pictures(), PROMPTS).scores, rtol=0, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in student.model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_what_is_trained_has_a_gradient_and_nothing_else_has(form: StudentForm):
    teacher, student = student_of(form)
    trained = form.trainable(student.model)
    assert {id(p) for p in student.model.parameters() if p.requires_grad} == {id(p) for p in trained}
    student.score(pictures(), PROMPTS, sigma=0.5).scores.square().sum().backward()
    assert all(p.grad is None for p in student.model.parameters() if not p.requires_grad)
    assert sum(float(p.grad.abs().sum()) for p in trained if p.grad is not None) > 0
    assert all(p.grad is None for p in teacher.model.parameters())


def names(form: StudentForm) -> set[str]:
    _, student = student_of(form)
    trained = {id(p) for p in form.trainable(student.model)}
    return {name for name, p in student.model.named_parameters() if id(p) in trained}


def test_each_form_trains_its_own():
    whole = {name for name, _ in clip().model.named_parameters()}
    assert names(FullForm()) == whole
    adapters = names(LoraForm(targets=("q_proj", "v_proj")))
    assert adapters
    assert all(".lora_" in name and (".q_proj." in name or ".v_proj." in name) for name in adapters)
    assert all(".noise_modulation." in name for name in names(ModulatedForm(whole=False)))
    assert names(ModulatedForm()) == whole | names(ModulatedForm(whole=False))


def moved(form: StudentForm) -> NetworkReward:
    """After training, so to speak."""
    _, student = student_of(form)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in form.trainable(student.model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    student.model.requires_grad_(False)
    return student


def test_a_modulated_network_is_told_the_noise_and_forgets_it():
    """Prompts are read anew at each level, so that what is kept of one does not answer for another."""
    student = moved(ModulatedForm(whole=False))
    assert isinstance(student, ModulatedReward)
    base = clip().score(pictures(), PROMPTS).scores
    first = student.score(pictures(), PROMPTS, sigma=0.2).scores
    other = student.score(pictures(), PROMPTS, sigma=0.8).scores
    assert not torch.allclose(first, other, atol=1e-3)
    assert torch.allclose(student.score(pictures(), PROMPTS, sigma=0.2).scores, first, atol=1e-6)
    assert torch.allclose(student.score(pictures(), PROMPTS).scores, base, atol=1e-6)
    fresh = student.with_model(student.model)
    assert torch.allclose(fresh.score(pictures(), PROMPTS, sigma=0.8).scores, other, atol=1e-6)


def test_adapters_add_their_product():
    """W' = W + (alpha / rank) B A (arXiv 2106.09685)."""
    linear = nn.Sequential(nn.Linear(6, 4))
    form, x = LoraForm(rank=2, alpha=6), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    before = linear(x)
    form.adapt(linear)
    down, up = (p for p in form.trainable(linear))
    assert torch.equal(linear(x), before)
    with torch.no_grad():
        up.normal_(generator=torch.Generator().manual_seed(2))
    assert torch.allclose(linear(x), before + 3 * x @ down.T @ up.T, atol=1e-6)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    for form in (LoraForm, ModulatedForm):
        first, again, other = (drawn(form(seed=seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def drawn(form: LoraForm | ModulatedForm) -> Tensor:
    """The weights that do not begin at 0."""
    network = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
    before = torch.random.get_rng_state()
    form.adapt(network)
    assert torch.equal(torch.random.get_rng_state(), before)
    state = network.state_dict()
    return torch.cat([t.flatten() for name, t in state.items() if "lora_A" in name or "features" in name])


def test_forms_go_through_plain_values():
    lora, modulated = LoraForm(rank=3, targets=("q_proj",)), ModulatedForm(hidden=8, whole=False)
    assert LoraForm.from_json(lora.to_json()) == lora
    assert ModulatedForm.from_json(modulated.to_json()) == modulated


def test_networks_that_cannot_be_adapted():
    with pytest.raises(ValueError, match="name no linear layer"):
        LoraForm(targets=("nothing",)).adapt(clip().model)
    with pytest.raises(ValueError, match="no layer normalisation"):
        ModulatedForm().adapt(linear_reward(torch.ones(12)).model)
    with pytest.raises(ValueError, match="rank = 0"):
        LoraForm(rank=0)
    with pytest.raises(ValueError, match="hidden = 0"):
        ModulatedForm(hidden=0)
