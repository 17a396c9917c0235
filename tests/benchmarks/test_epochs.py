"""The trainer and the loops in the structure of the published scripts do the same epoch."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
import torch

from benchmarks import bench_grpo_epoch, bench_tempflow_epoch
from benchmarks.bench_tempflow_epoch import by_start_noise
from benchmarks.published_sd3 import Settings, group_advantages

SMALLEST: dict[ModuleType, list[str]] = {
    bench_grpo_epoch: ["--prompts", "2", "--samples", "3", "--steps", "3", "--loop-batch", "2", "--guidance", "2"],
    bench_tempflow_epoch: ["--prompts", "1", "--seeds", "2", "--children", "2", "--steps", "3", "--guidance", "2"],
}
SETTINGS = Settings(
    levels=(0.7,),
    trained=(0,),
    guidance=1.0,
    detach_uncond=False,
    batch=1,
    tokens=1,
    clip_range=1e-3,
    advantage_clip=5.0,
    advantage_eps=1e-4,
    max_grad_norm=1.0,
)


@pytest.mark.parametrize("benchmark", SMALLEST, ids=lambda benchmark: benchmark.__name__)
def test_sides_make_the_same_epoch(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main([*SMALLEST[benchmark], "--rounds", "1"])
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["max_image_difference"] < 1e-3
    assert results["max_gradient_difference"] < 1e-4
    assert results["ratio"] > 0
    assert set(results["cpu_seconds"]) == {"ours", "loop", "loop_same_batch"}
    if benchmark is bench_tempflow_epoch:  # a trunk of two rows a root; two children over two steps, and over one
        assert results["same_batch"]["max_image_difference"] < 1e-3
        assert results["same_batch"]["max_gradient_difference"] < 1e-4
        assert results["forwards"] == 2 * (2 + 2 * 2 + 2 * 1)
        assert results["trained_rows"] == 2 * 2 * 2


def test_columns_of_rewards_are_compared_apart() -> None:
    rewards = torch.tensor([[1.0, 5.0], [3.0, 5.0], [0.0, 2.0], [0.0, 4.0]])
    advantages = group_advantages(rewards, [0, 0, 1, 1], SETTINGS)
    expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    torch.testing.assert_close(advantages, expected, atol=2e-4, rtol=0)


def test_images_of_the_loop_are_put_in_the_order_of_the_trainer() -> None:
    """Three start noises in batches of two and one, two branch steps, two children; the value names them."""

    def scored(roots: list[int], step: int) -> torch.Tensor:
        return torch.tensor([100 * root + 10 * step + child for root in roots for child in range(2)])

    calls = [scored(roots, step) for roots in ([0, 1], [2]) for step in range(2)]
    expected = [100 * root + 10 * step + child for root in range(3) for step in range(2) for child in range(2)]
    assert by_start_noise(calls, steps=2, children=2).tolist() == expected
