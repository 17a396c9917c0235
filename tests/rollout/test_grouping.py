import pytest
import torch

from difalign.objective.advantages import group_advantages
from difalign.rollout import plans
from difalign.rollout.engine import rollout
from difalign.rollout.grouping import edge_rewards, group_ids
from tests.toys import elementwise_pipeline

N = 10
SEEDS = (1, 2, 3, 4, 5)
PROMPTS = torch.tensor([1, 0, 1, 0, 1])


def run(made, *, seeds=SEEDS, prompts=PROMPTS):
    pipeline = elementwise_pipeline()
    condition = pipeline.encode(["-0.5", "0.8"])
    return rollout(pipeline, made, condition=condition, prompt_index=prompts, root_seeds=seeds, micro_batch=64)


def advantages(trajectories, rewards, *, prompts=PROMPTS, **grouping):
    groups = group_ids(trajectories, prompts, **grouping)
    return group_advantages(edge_rewards(rewards, trajectories), groups).advantage


def test_edges_of_one_walk_get_its_reward():
    trajectories = run((plans.plain(N, 0.7),))
    rewards = torch.arange(5.0)
    assert torch.equal(edge_rewards(rewards, trajectories), rewards.repeat_interleave(9))


def test_inner_edges_get_the_mean_of_their_leaves():
    trajectories = run((plans.cascade(4, 0.7, at=(0, 2), children=2),), seeds=(7,), prompts=torch.tensor([0]))
    rewards = torch.tensor([1.0, 2.0, 4.0, 9.0])
    by_step = edge_rewards(rewards, trajectories)
    assert by_step[trajectories.step == 0].tolist() == [1.5, 6.5]
    assert by_step[trajectories.step == 1].tolist() == [1.5, 6.5]
    assert by_step[trajectories.step == 2].tolist() == [1.0, 2.0, 4.0, 9.0]


def test_mean_of_equal_rewards_is_exact():
    trajectories = run((plans.cascade(4, 0.7, at=(0, 1), children=7),))
    rewards = torch.full((5 * 49,), 0.1)
    assert (edge_rewards(rewards, trajectories) == rewards[0]).all()


def test_depth_advantages_have_mean_zero():
    trajectories = run(
        (plans.cascade(20, 0.3, at=(0, 3, 6, 9), children=2, last_step_noise=True),),
        seeds=(1,),
        prompts=torch.tensor([0]),
    )
    advantage = advantages(trajectories, torch.randn(16), prompts=torch.tensor([0]), by="seed")
    for depth in range(20):
        assert abs(float(advantage[trajectories.step == depth].mean())) < 1e-6


def test_groups_by_prompt_and_by_seed():
    trajectories = run((plans.plain(4, 0.7),))
    by_prompt = group_ids(trajectories, PROMPTS, per_step=False)
    assert torch.equal(by_prompt, PROMPTS.repeat_interleave(3))
    by_seed = group_ids(trajectories, PROMPTS, by="seed", per_step=False)
    assert torch.equal(by_seed, torch.arange(5).repeat_interleave(3))
    per_step = group_ids(trajectories, PROMPTS)
    assert per_step.unique().tolist() == list(range(6))
    assert torch.equal(per_step // 3, by_prompt)
    assert torch.equal(per_step % 3, trajectories.step)


def test_sharing_a_step_makes_no_difference_to_unforked_walks():
    trajectories = run((plans.plain(N, 0.7),))
    rewards = torch.randn(5)
    torch.testing.assert_close(
        advantages(trajectories, rewards), advantages(trajectories, rewards, per_step=False), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("by", ["prompt", "seed"])
def test_a_branch_step_is_compared_with_itself_only(by):
    """Changing the rewards of one branch step changes the advantages of that step and no other."""
    trajectories = run(plans.branch(N, 0.7, children=6, at=plans.all_steps(N)))
    rewards = torch.randn(len(trajectories.final))
    changed = torch.where(trajectories.final_plan == 4, torch.randn_like(rewards), rewards)
    before = advantages(trajectories, rewards, by=by)
    after = advantages(trajectories, changed, by=by)
    differs = before != after
    assert torch.equal(differs, trajectories.step == 4)


def test_one_branch_is_flow_grpo_fast():
    """K = 1 at step k with prompt groups over many seeds is, sample for sample, a window of one step."""
    k = 3
    branched = run(plans.branch(N, 0.7, children=1, at=(k,)))
    fast = run((plans.window(N, 0.7, start=k, size=1),))
    for name in ("x", "x_next", "log_prob", "final", "step", "root"):
        assert torch.equal(getattr(branched, name), getattr(fast, name)), name
    # It still holds beside the other branch steps.
    among = run(plans.branch(N, 0.7, children=1, at=plans.all_steps(N)))
    assert torch.equal(among.x_next[among.step == k], fast.x_next)
    assert torch.equal(among.log_prob[among.step == k], fast.log_prob)
    assert torch.equal(among.final[among.final_plan == k], fast.final)
    rewards = torch.randn(5)
    prompt = advantages(branched, rewards, by="prompt")
    assert torch.equal(prompt, advantages(fast, rewards, by="prompt"))
    assert (prompt != 0).all()
    assert (advantages(branched, rewards, by="seed") == 0).all()  # a group of one says nothing


def test_bad_grouping_names_the_value():
    trajectories = run((plans.plain(N, 0.7),))
    with pytest.raises(ValueError, match=r"\(5,\), one a leaf, got \(4,\)"):
        edge_rewards(torch.zeros(4), trajectories)
    with pytest.raises(ValueError, match="names 3 roots but the trajectories have 5"):
        group_ids(trajectories, PROMPTS[:3])
    with pytest.raises(ValueError, match="unknown group 'root'"):
        group_ids(trajectories, PROMPTS, by="root")  # type: ignore[arg-type]
