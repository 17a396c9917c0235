"""Rows of encoded prompts, gathered by index."""

from __future__ import annotations

import pytest
import torch

from difalign.core.protocols import Condition
from difalign.pipelines.text_condition import TextCondition


@pytest.fixture
def condition() -> TextCondition:
    """Four rows over two texts."""
    return TextCondition(
        table=(torch.randn(2, 3, 5), torch.randn(2, 7)),
        negative=(torch.randn(1, 3, 5), torch.randn(1, 7)),
        index=torch.tensor([1, 0, 1, 1]),
    )


def test_is_a_condition(condition: TextCondition):
    assert isinstance(condition, Condition)
    assert len(condition) == 4
    assert condition.device.type == "cpu"


def test_rows_keep_order_and_repeats_without_copying_the_table(condition: TextCondition):
    rows = condition.rows(torch.tensor([3, 1, 3]))
    assert len(rows) == 3
    assert rows.embeds is condition.embeds
    for mine, whole in zip(rows.conditional(), condition.conditional(), strict=True):
        assert torch.equal(mine, whole[[3, 1, 3]])
    again = rows.rows(torch.tensor([1]))
    assert torch.equal(again.conditional()[0][0], condition.embeds[0])


def test_guided_is_the_empty_prompt_for_all_then_the_prompts(condition: TextCondition):
    for both, cond, negative in zip(
        condition.guided(),
        condition.conditional(),
        condition.negative,
        strict=True,
    ):
        assert both.shape[0] == 8
        assert torch.equal(both[4:], cond)
        assert all(torch.equal(row, negative[0]) for row in both[:4])
