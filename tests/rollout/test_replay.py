from dataclasses import replace

import pytest
import torch

from difalign.core import gaussian
from difalign.objective.surrogate import clipped_surrogate
from difalign.process.flow import FlowProcess, RenoiseProcess
from difalign.process.rules import dance_rule, wan_rule
from difalign.rollout import plans
from difalign.rollout.engine import rollout
from difalign.rollout.replay import edge_log_prob
from tests.toys import elementwise_pipeline

N = 6
SEEDS = (1, 2, 3)
PROMPTS = torch.tensor([0, 1, 1])
PROCESSES = {
    "flow": FlowProcess(),
    "dance": FlowProcess(rule=dance_rule),
    "wan": FlowProcess(rule=wan_rule),
    "cps": RenoiseProcess(),
}
MIXED = (
    plans.plain(N, 0.7),
    *plans.branch(N, 0.5, children=3, at=(1, 3)),
    plans.cascade(N, 0.4, at=(0, 2), children=2),
)


def setup(process, *, latent=(4, 3, 3), made=MIXED, **settings):
    pipeline = elementwise_pipeline(latent)
    pipeline.process = process
    condition = pipeline.encode(["-0.5", "0.8"])
    trajectories = rollout(pipeline, made, condition=condition, prompt_index=PROMPTS, root_seeds=SEEDS, **settings)
    return pipeline, condition, trajectories


def replay(pipeline, condition, trajectories, *, batch, **settings):
    order = torch.randperm(len(trajectories.step))  # steps are mixed inside a batch
    log_prob = torch.empty_like(trajectories.log_prob)
    for rows in order.split(batch):
        log_prob[rows] = edge_log_prob(
            pipeline, trajectories, rows, condition=condition, prompt_index=PROMPTS, grid=pipeline.grid(N), **settings
        ).log_prob.detach()
    return log_prob


@pytest.mark.parametrize("batch", [1, 5, 1000])
@pytest.mark.parametrize("storage", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_first_ratio_is_exactly_one(process, storage, batch):
    pipeline, condition, trajectories = setup(process, storage_dtype=storage, micro_batch=4)
    again = replay(pipeline, condition, trajectories, batch=batch)
    assert again.dtype == torch.float32
    assert ((again - trajectories.log_prob).exp() == 1.0).all()
    assert torch.equal(again, trajectories.log_prob)


@pytest.mark.parametrize("latent", [(8,), (16, 24), (4, 8, 8), (4, 3, 5, 5)])
def test_first_ratio_is_one_at_any_latent_rank(latent):
    pipeline, condition, trajectories = setup(FlowProcess(), latent=latent, micro_batch=5)
    assert torch.equal(replay(pipeline, condition, trajectories, batch=3), trajectories.log_prob)


@pytest.mark.parametrize("storage", [torch.float32, torch.float16])
def test_means_are_kept_on_request_and_replay_gives_them_exactly(storage):
    pipeline, condition, trajectories = setup(FlowProcess(), storage_dtype=storage, micro_batch=4, keep_mean=True)
    assert trajectories.mean is not None
    assert trajectories.mean.dtype == torch.float32
    rows = torch.randperm(len(trajectories.step))
    again = edge_log_prob(
        pipeline, trajectories, rows, condition=condition, prompt_index=PROMPTS, grid=pipeline.grid(N)
    )
    assert torch.equal(again.step.mean, trajectories.mean[rows])
    assert setup(FlowProcess())[2].mean is None


def test_first_ratio_is_one_with_another_density():
    density = gaussian.squared_error_log_prob
    pipeline, condition, trajectories = setup(RenoiseProcess(), log_prob=density)
    assert torch.equal(replay(pipeline, condition, trajectories, batch=4, log_prob=density), trajectories.log_prob)
    assert not torch.equal(replay(pipeline, condition, trajectories, batch=4), trajectories.log_prob)


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
def test_rounding_after_the_log_prob_would_break_the_ratio(storage):
    """What the rule protects from: the same walk in float32, its edges rounded only when stored."""
    pipeline, condition, trajectories = setup(FlowProcess(), latent=(4, 16, 16))
    late = replace(trajectories, x_next=trajectories.x_next.to(storage))
    drift = (replay(pipeline, condition, late, batch=1000) - trajectories.log_prob).abs().max()
    assert float(drift) > 1e-6


def test_log_prob_changes_with_the_weights_and_carries_gradient():
    pipeline, condition, trajectories = setup(FlowProcess())
    rows = torch.arange(7)
    with torch.no_grad():
        next(pipeline.network.parameters()).add_(0.05)
    edges = edge_log_prob(
        pipeline, trajectories, rows, condition=condition, prompt_index=PROMPTS, grid=pipeline.grid(N)
    )
    assert not torch.equal(edges.log_prob, trajectories.log_prob[rows])
    assert edges.prediction.shape == edges.step.mean.shape == (7, 4, 3, 3)
    gradients = torch.autograd.grad(edges.log_prob.sum(), list(pipeline.network.parameters()))
    assert all(bool(gradient != 0) for gradient in gradients)
    expected = torch.distributions.Normal(edges.step.mean, edges.step.std.expand_as(edges.step.mean))
    torch.testing.assert_close(
        edges.log_prob, expected.log_prob(trajectories.x_next[rows]).mean(dim=(1, 2, 3)), rtol=1e-5, atol=1e-5
    )


def gradient(pipeline, condition, trajectories, advantage, *, batch):
    weights = list(pipeline.network.parameters())
    total = torch.zeros(len(weights), dtype=weights[0].dtype)
    rows = torch.arange(len(trajectories.step))
    for part in rows.split(batch):
        edges = edge_log_prob(
            pipeline, trajectories, part, condition=condition, prompt_index=PROMPTS, grid=pipeline.grid(N)
        )
        surrogate = clipped_surrogate(edges.log_prob, trajectories.log_prob[part], advantage[part], clip_range=1e-4)
        total += torch.stack(torch.autograd.grad(surrogate.loss.sum() / len(rows), weights))
    return total


def test_gradient_does_not_depend_on_the_micro_batch():
    pipeline, condition, trajectories = setup(FlowProcess(), storage_dtype=torch.float64)
    pipeline.network.double()
    with torch.no_grad():
        next(pipeline.network.parameters()).add_(1e-4)  # off policy, so that some ratios are clipped
    advantage = torch.randn(len(trajectories.step), dtype=torch.float64)
    whole = gradient(pipeline, condition, trajectories, advantage, batch=1000)
    parts = gradient(pipeline, condition, trajectories, advantage, batch=len(trajectories.step) // 4)
    torch.testing.assert_close(whole, parts, rtol=1e-10, atol=1e-12)


def test_first_gradient_is_reinforce():
    pipeline, condition, trajectories = setup(FlowProcess())
    advantage = torch.randn(len(trajectories.step))
    surrogate = gradient(pipeline, condition, trajectories, advantage, batch=1000)
    edges = edge_log_prob(
        pipeline,
        trajectories,
        torch.arange(len(trajectories.step)),
        condition=condition,
        prompt_index=PROMPTS,
        grid=pipeline.grid(N),
    )
    reinforce = torch.autograd.grad(-(advantage * edges.log_prob).mean(), list(pipeline.network.parameters()))
    torch.testing.assert_close(surrogate, torch.stack(reinforce))
