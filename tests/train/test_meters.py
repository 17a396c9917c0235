"""The meter: pooled over micro-batches and processes, it says what one look at all rows would say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from difalign.objective.advantages import group_advantages
from difalign.objective.surrogate import clipped_surrogate
from difalign.train.meters import Meter
from difalign.train.runtime import Runtime
from tests.train.together import ThreadRuntime, run_together

ROWS, CLIP = 24, 0.1


@dataclass(frozen=True)
class Update:
    """What the rows of one update look like."""

    log_prob: Tensor  # [N]
    old: Tensor  # [N]
    advantage: Tensor  # [N]
    kl: Tensor  # [N]


def update() -> Update:
    source = torch.Generator().manual_seed(0)
    old, shift, advantage, kl = torch.randn(4, ROWS, generator=source)
    return Update((old + 0.2 * shift).requires_grad_(), old, advantage, kl.square().requires_grad_())


def feed(meter: Meter, rows: Tensor, data: Update, *, with_kl: bool = True) -> None:
    """One micro-batch, its loss divided by the rows of the whole update."""
    surrogate = clipped_surrogate(data.log_prob[rows], data.old[rows], data.advantage[rows], clip_range=CLIP)
    meter.chunk(surrogate, data.kl[rows] if with_kl else None, surrogate.loss.sum() / ROWS)


@pytest.mark.parametrize("sizes", [(ROWS,), (1, 5, 10, 8), (1,) * ROWS])
def test_means_over_micro_batches_are_means_over_all_rows(sizes) -> None:
    data, meter = update(), Meter(Runtime())
    for rows in torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)).split(list(sizes)):
        feed(meter, rows, data)
    row = meter.row()
    ratio = (data.log_prob.detach() - data.old).exp()
    loss = torch.maximum(-data.advantage * ratio, -data.advantage * ratio.clamp(1 - CLIP, 1 + CLIP))
    expected = {
        "ratio_mean": ratio.mean(),
        "ratio_max_deviation": (ratio - 1).abs().max(),
        "policy_loss": loss.mean(),
        "loss": loss.mean(),
        "clip_fraction": ((ratio > 1 + CLIP) | (ratio < 1 - CLIP)).double().mean(),
        "clip_fraction_high": (ratio > 1 + CLIP).double().mean(),
        "clip_fraction_low": (ratio < 1 - CLIP).double().mean(),
        "approx_kl": 0.5 * (data.log_prob.detach() - data.old).square().mean(),
        "kl": data.kl.detach().mean(),
    }
    assert {name: row[name] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-5
    )
    assert 0.0 < row["clip_fraction_low"] < row["clip_fraction"] < 1.0  # the data puts rows on every side


def test_rewards_and_groups() -> None:
    total = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.25, 0.25])
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    meter = Meter(Runtime())
    meter.rewards({"total": total, "part": total * 10}, group_advantages(total, group))
    row = meter.row()
    assert row["reward"] == pytest.approx(2.5 / 6)
    assert row["reward_std"] == pytest.approx(float(total.double().std(correction=0)))
    assert row["reward/part"] == pytest.approx(25 / 6)
    assert row["zero_variance_groups"] == pytest.approx(2 / 3)
    assert row["group_std"] == pytest.approx(0.5 / 3)  # of the three groups: a half, nothing, nothing
    assert not {"reward/total", "reward_square"} & set(row)  # told as reward and reward_std


def test_spread_of_equal_rewards_is_zero_and_never_a_root_of_less() -> None:
    for value in (0.1, 0.3, 1e-3):
        total = torch.full((1000,), value)
        meter = Meter(Runtime())
        meter.rewards({"total": total}, group_advantages(total, torch.zeros(1000, dtype=torch.int64)))
        assert meter.row()["reward_std"] == pytest.approx(0.0, abs=1e-7)


def test_what_was_not_measured_is_not_told() -> None:
    meter = Meter(Runtime())
    feed(meter, torch.arange(ROWS), update(), with_kl=False)
    assert "kl" not in meter.row()


def test_gradient_norm_is_told_as_it_was() -> None:
    meter = Meter(Runtime())
    assert meter.row()["grad_norm"] == 0.0  # an update without rows takes no step
    meter.gradient(3.25)
    assert meter.row()["grad_norm"] == 3.25


def test_meter_holds_no_graph() -> None:
    meter = Meter(Runtime())
    feed(meter, torch.arange(ROWS), update())
    assert all(isinstance(value, float) for value in meter.row().values())


def test_processes_are_pooled_by_rows_and_the_largest_deviation_wins() -> None:
    """A process with 4 rows, one with 19, one with 1 and one with none say together what one with 24 says."""
    data, whole = update(), Meter(Runtime())
    feed(whole, torch.arange(ROWS), data)
    whole.gradient(1.5)
    expected = whole.row()
    parts = (*torch.arange(ROWS).split([4, 19, 1]), torch.arange(0))

    def process(runtime: ThreadRuntime) -> dict[str, float]:
        meter = Meter(runtime)
        for rows in parts[runtime.rank].split(7):
            if rows.numel():
                feed(meter, rows, data)
        meter.gradient(1.5)
        return meter.row()

    rows = run_together(len(parts), process)
    assert rows[0] == pytest.approx(expected, rel=1e-5)
    assert all(row == rows[0] for row in rows)  # every process says the same


def test_rewards_of_all_processes_count_alike() -> None:
    """Three samples here and one there: the mean is over the samples, not over the processes."""
    total = torch.tensor([0.0, 1.0, 2.0, 5.0])

    def process(runtime: ThreadRuntime) -> dict[str, float]:
        mine = total[:3] if runtime.is_main else total[3:]
        meter = Meter(runtime)
        meter.rewards({"total": mine}, group_advantages(mine, torch.zeros(len(mine), dtype=torch.int64)))
        return meter.row()

    for row in run_together(2, process):
        assert row["reward"] == pytest.approx(2.0)
        assert row["reward_std"] == pytest.approx(3.5**0.5)
        assert row["zero_variance_groups"] == pytest.approx(0.5)  # a sample alone has nothing to be compared with
