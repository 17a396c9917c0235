"""The losses in closed form, what they leave alone, the order of levels and the decay within one."""

from __future__ import annotations

import math

import pytest
import torch

from difalign.objective.distillation import (
    DistillationLoss,
    check_curriculum,
    decayed_rate,
    ranking_loss,
    squared_error,
)

STUDENT = torch.tensor([0.2, 0.9, -0.4, 0.1, 0.6], dtype=torch.float64)
TEACHER = torch.tensor([1.0, 0.5, 0.5, 3.0, 2.0], dtype=torch.float64)
PROMPT = torch.tensor([0, 0, 0, 1, 1])


def by_hand(temperature: float) -> float:
    """Pairs that the teacher orders: (0, 1), (0, 2) of the first prompt and (3, 4) of the second; 1 and 2 are equal."""
    margins = [0.2 - 0.9, 0.2 + 0.4, 0.1 - 0.6]
    return sum(math.log1p(math.exp(-margin / temperature)) for margin in margins) / 3


def test_squared_error_by_hand():
    assert squared_error(STUDENT, TEACHER).tolist() == pytest.approx([0.64, 0.16, 0.81, 8.41, 1.96])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_ranking_loss_by_hand(temperature: float):
    loss = ranking_loss(STUDENT, TEACHER, PROMPT, temperature=temperature)
    assert float(loss) == pytest.approx(by_hand(temperature), abs=1e-12)


def test_both_are_weighed():
    loss = DistillationLoss(error_weight=2.0, ranking_weight=3.0, temperature=0.5)(STUDENT, TEACHER, PROMPT)
    assert float(loss) == pytest.approx(2 * 11.98 / 5 + 3 * by_hand(0.5), abs=1e-12)
    assert float(DistillationLoss()(STUDENT, TEACHER, PROMPT)) == pytest.approx(11.98 / 5, abs=1e-12)


def test_ranking_loss_orders_and_does_not_shift():
    student = STUDENT.clone().requires_grad_()
    ranking_loss(student, TEACHER, PROMPT, temperature=0.5).backward()
    assert student.grad is not None
    assert float(student.grad[:3].sum()) == pytest.approx(0, abs=1e-15)
    assert student.grad[0] < 0 < student.grad[1]  # the better of the first prompt is lifted, the others are lowered
    moved = torch.tensor([5.0, 5.0, 5.0, -7.0, -7.0], dtype=torch.float64)
    assert float(ranking_loss(STUDENT + moved, TEACHER, PROMPT, temperature=0.5)) == pytest.approx(by_hand(0.5))


def test_without_a_pair_the_ranking_loss_is_zero_and_has_a_gradient():
    student = torch.zeros(2, requires_grad=True)
    loss = ranking_loss(student, torch.ones(2), torch.tensor([0, 0]), temperature=0.5)
    loss.backward()
    assert float(loss.detach()) == 0
    assert student.grad is not None
    assert student.grad.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("error_weight", "ranking_weight", "temperature", "said"),
    [(0.0, 0.0, 0.5, "above it"), (-1.0, 1.0, 0.5, "at least 0"), (1.0, 1.0, 0.0, "temperature = 0.0")],
)
def test_losses_that_teach_nothing(error_weight: float, ranking_weight: float, temperature: float, said: str):
    with pytest.raises(ValueError, match=said):
        DistillationLoss(error_weight=error_weight, ranking_weight=ranking_weight, temperature=temperature)


def test_levels_go_from_clean_to_noisy():
    assert check_curriculum([0.2, 0.5, 0.85]) == (0.2, 0.5, 0.85)
    with pytest.raises(ValueError, match=r"write 0\.2, 0\.5, 0\.85"):
        check_curriculum([0.85, 0.5, 0.2])
    with pytest.raises(ValueError, match="each once"):
        check_curriculum([0.5, 0.5])


@pytest.mark.parametrize(("levels", "said"), [([], "empty"), ([0.0, 0.5], "teacher itself"), ([math.nan], "above 0")])
def test_levels_that_are_none(levels: list[float], said: str):
    with pytest.raises(ValueError, match=said):
        check_curriculum(levels)


def test_the_rate_falls_linearly_to_its_share():
    rates = [decayed_rate(step, steps=5, first=4e-6, last_share=0.5) for step in range(5)]
    assert rates == pytest.approx([4e-6, 3.5e-6, 3e-6, 2.5e-6, 2e-6], rel=1e-12)
    assert decayed_rate(0, steps=1, first=4e-6, last_share=0.5) == 4e-6
