import pytest
import torch

from difalign.core import gaussian
from difalign.core.rng import generator
from difalign.core.types import StepPlan
from difalign.process.flow import FlowProcess, RenoiseProcess
from difalign.rollout import plans
from difalign.rollout.engine import rollout
from difalign.rollout.trie import count_edges, count_forwards, count_leaves
from tests.toys import ToyPipeline, elementwise_pipeline

N = 6
SEEDS = (11, 12, 13, 14, 15)
PROMPTS = torch.tensor([0, 0, 1, 1, 2])
EVERY_PLAN = {
    "deterministic": (plans.deterministic(N),),
    "plain": (plans.plain(N, 0.7),),
    "plain forked": (plans.plain(N, 0.7, children=3),),
    "window": (plans.window(N, 0.7, start=1, size=2),),
    "window forked": (plans.window(N, 0.7, start=1, size=2, children=3),),
    "branch all": plans.branch(N, 0.7, children=3, at=plans.all_steps(N)),
    "branch early": plans.branch(N, 0.7, children=4, at=plans.early_steps(N, 2)),
    "branch sampled": plans.branch(N, 0.7, children=2, at=plans.sampled_steps(N, 2, seed=0, epoch=0)),
    "split": (plans.split(N, 0.7, at=2, children=3),),
    "cascade": (plans.cascade(N, 0.7, at=(0, 2), children=2),),
    "mixed": (plans.plain(N, 0.7), *plans.branch(N, 0.7, children=3, at=(1, 3)), plans.deterministic(N)),
}
each_plan = pytest.mark.parametrize("made", EVERY_PLAN.values(), ids=EVERY_PLAN.keys())


def run(made, *, pipeline=None, seeds=SEEDS, prompts=PROMPTS, **settings):
    pipeline = pipeline or elementwise_pipeline()
    return rollout(
        pipeline,
        made,
        condition=pipeline.encode(["-0.5", "0.0", "0.8"]),
        prompt_index=prompts,
        root_seeds=seeds,
        **settings,
    )


def tensors(trajectories):
    return {
        name: getattr(trajectories, name)
        for name in ("x", "x_next", "log_prob", "step", "noise_level", "root", "descent", "final", "final_root")
    }


def assert_same(first, second):
    for (name, a), b in zip(tensors(first).items(), tensors(second).values(), strict=True):
        assert torch.equal(a, b), name


def euler(pipeline, num_steps=N):
    """The ODE by hand, one root at a time."""
    grid = pipeline.grid(num_steps)
    offsets = pipeline.encode(["-0.5", "0.0", "0.8"]).offset[PROMPTS]
    trunk = [pipeline.initial_latents([torch.Generator().manual_seed(seed) for seed in SEEDS])]
    with torch.no_grad():
        for i in range(num_steps):
            time = grid.model_time[i].expand(len(SEEDS))
            velocity = pipeline.network(trunk[-1], time, offsets)
            trunk.append(trunk[-1] + velocity * (grid.sigma[i + 1] - grid.sigma[i]))
    return trunk


@each_plan
def test_forwards_edges_and_leaves_equal_the_arithmetic(made):
    pipeline = elementwise_pipeline()
    trajectories = run(made, pipeline=pipeline, micro_batch=7)
    assert sum(pipeline.batches) == trajectories.forwards == count_forwards(made, len(SEEDS))
    assert trajectories.x.shape == trajectories.x_next.shape == (count_edges(made, len(SEEDS)), 8)
    assert trajectories.final.shape == (count_leaves(made, len(SEEDS)), 8)
    assert max(pipeline.batches) <= 7  # the memory cap
    assert len(pipeline.batches) == sum(-(-rows // 7) for rows in rows_of_steps(pipeline))  # and no waste below it


def rows_of_steps(pipeline):
    times = torch.tensor(pipeline.times)
    return [int((times == time).sum()) for time in times.unique()]


@each_plan
@pytest.mark.parametrize("micro_batch", [1, 4, 13])
def test_any_micro_batch_gives_the_same_samples(made, micro_batch):
    assert_same(run(made, micro_batch=1000), run(made, micro_batch=micro_batch))


@each_plan
def test_roots_split_over_two_processes_give_the_same_samples(made):
    whole = run(made)
    parts = [run(made, seeds=SEEDS[rows], prompts=PROMPTS[rows]) for rows in (slice(0, 2), slice(2, 5))]
    for name in ("x", "x_next", "log_prob", "final"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts])), name


def test_more_children_or_other_plans_do_not_change_the_first_ones():
    few = run(plans.branch(N, 0.7, children=2, at=(2,)))
    many = run(plans.branch(N, 0.7, children=5, at=plans.all_steps(N)))
    chosen = many.final[many.final_plan == 2].unflatten(0, (len(SEEDS), 5))[:, :2].flatten(0, 1)
    assert torch.equal(few.final, chosen)


@pytest.mark.parametrize("latent", [(3,), (5, 3), (2, 3, 5)])
def test_noise_of_a_row_does_not_depend_on_the_number_of_rows(latent):
    # A single larger draw of torch.randn does not begin with the numbers of a smaller one at these sizes.
    few = run((plans.plain(3, 0.7, children=2),), pipeline=elementwise_pipeline(latent))
    many = run((plans.plain(3, 0.7, children=7),), pipeline=elementwise_pipeline(latent))
    assert torch.equal(few.final, many.final.unflatten(0, (len(SEEDS), 7))[:, :2].flatten(0, 1))


def test_noise_is_the_documented_function_of_seed_step_and_row():
    made = (plans.window(N, 0.7, start=1, size=1, children=3),)
    pipeline = elementwise_pipeline()
    trajectories = run(made, pipeline=pipeline)
    grid = pipeline.grid(N)
    trunk = euler(pipeline)
    std = 0.7 * (grid.sigma[1] - grid.sigma[2]).sqrt()
    for root, seed in enumerate(SEEDS):
        source = generator("step noise", seed, 1)
        noise = torch.stack([torch.randn(8, generator=source) for _ in range(3)])
        torch.testing.assert_close(trajectories.x_next[trajectories.root == root], trunk[2][root] + std * noise)


def test_noise_free_plan_is_the_ode():
    pipeline = elementwise_pipeline()
    assert torch.equal(run((plans.deterministic(N),), pipeline=pipeline).final, euler(pipeline)[-1])


@pytest.mark.parametrize("process", [FlowProcess(), RenoiseProcess()])
def test_noise_free_plan_is_the_ode_under_real_processes(process):
    pipeline = elementwise_pipeline()
    pipeline.process = process
    final = run((plans.deterministic(N),), pipeline=pipeline).final
    torch.testing.assert_close(final, euler(pipeline)[-1], rtol=1e-5, atol=1e-6)


def test_window_is_the_ode_outside():
    pipeline = elementwise_pipeline()
    trajectories = run((plans.window(N, 0.7, start=2, size=2),), pipeline=pipeline)
    trunk = euler(pipeline)
    assert torch.equal(trajectories.x[trajectories.step == 2], trunk[2])
    after = trajectories.x_next[trajectories.step == 3]
    grid = pipeline.grid(N)
    offsets = pipeline.encode(["-0.5", "0.0", "0.8"]).offset[PROMPTS]
    with torch.no_grad():
        for i in range(4, N):
            velocity = pipeline.network(after, grid.model_time[i].expand(5), offsets)
            after = after + velocity * (grid.sigma[i + 1] - grid.sigma[i])
    assert torch.equal(trajectories.final, after)


def test_branch_trunk_is_the_ode_trajectory():
    pipeline = elementwise_pipeline()
    trajectories = run(plans.branch(N, 0.7, children=3, at=plans.all_steps(N)), pipeline=pipeline)
    trunk = euler(pipeline)
    for i in range(N - 1):
        starts = trajectories.x[trajectories.step == i].unflatten(0, (len(SEEDS), 3))
        assert torch.equal(starts, trunk[i][:, None].expand_as(starts))


def test_children_share_their_start_and_spread_with_the_step_std():
    pipeline = elementwise_pipeline((2,))
    k = 4096
    made = plans.branch(N, 0.7, children=k, at=(2,))
    trajectories = run(made, pipeline=pipeline, seeds=(1,), prompts=torch.tensor([0]), micro_batch=k)
    grid = pipeline.grid(N)
    variance = 0.49 * (grid.sigma[2] - grid.sigma[3])
    covariance = torch.cov(trajectories.x_next.T)
    assert (trajectories.x == trajectories.x[0]).all()
    torch.testing.assert_close(covariance.diag(), variance.expand(2), rtol=0.1, atol=0.0)
    assert abs(float(covariance[0, 1])) < 4 * float(variance) / k**0.5
    assert trajectories.x_next.unique(dim=0).shape[0] == k


def test_branching_without_noise_gives_the_trunk_image():
    silent = tuple(tuple(StepPlan(0.0, 4) if j == i else StepPlan() for j in range(N)) for i in range(N - 1))
    trajectories = run((*silent, plans.deterministic(N)))
    trunk = trajectories.final[trajectories.final_plan == N - 1]
    for plan in range(N - 1):
        leaves = trajectories.final[trajectories.final_plan == plan].unflatten(0, (len(SEEDS), 4))
        assert torch.equal(leaves, trunk[:, None].expand_as(leaves))


def test_equal_prefixes_are_computed_once():
    pipeline = elementwise_pipeline()
    stem = (StepPlan(0.7),) * 4
    made = ((*stem, StepPlan(), StepPlan()), (*stem, StepPlan(0.3), StepPlan()), (*stem, StepPlan(), StepPlan(0.2)))
    trajectories = run(made, pipeline=pipeline)
    # 5 shared forwards a root, then the two nodes that differ at step 4
    assert trajectories.forwards == len(pipeline.times) == (5 + 2) * len(SEEDS)
    alone = torch.cat([run((plan,)).final for plan in made])
    by_plan = torch.cat([trajectories.final[trajectories.final_plan == plan] for plan in range(3)])
    assert torch.equal(alone, by_plan)


def test_trunk_and_branch_share_one_forward():
    pipeline = elementwise_pipeline()
    run((plans.deterministic(1), (StepPlan(0.7, 5, record=True),)), pipeline=pipeline)
    assert sum(pipeline.batches) == len(SEEDS)


def test_many_plans_equal_the_plans_one_by_one():
    made = EVERY_PLAN["mixed"]
    together = run(made)
    for index, plan in enumerate(made):
        assert torch.equal(together.final[together.final_plan == index], run((plan,)).final)


@each_plan
def test_order_and_descent(made):
    trajectories = run(made)
    roots = torch.arange(len(SEEDS))
    leaves, edges = count_leaves(made), count_edges(made)
    assert torch.equal(trajectories.final_root, roots.repeat_interleave(leaves))
    assert torch.equal(trajectories.root, roots.repeat_interleave(edges))
    local_plan = trajectories.final_plan[:leaves]
    assert torch.equal(local_plan, local_plan.sort().values)
    assert torch.equal(trajectories.step[:edges], trajectories.step[:edges].sort().values)
    edge, leaf = trajectories.descent
    assert torch.equal(trajectories.root[edge], trajectories.final_root[leaf])
    recorded = torch.tensor([sum(entry.record for entry in plan) for plan in made])
    # every leaf has one edge for every recorded step of its plan, and no edge is without a leaf
    assert torch.equal(leaf.bincount(minlength=len(trajectories.final)), recorded[trajectories.final_plan])
    assert torch.equal(edge.unique(), torch.arange(len(trajectories.step)))


def test_descent_follows_the_latents_through_a_tree():
    """Every chain of edges above a leaf is connected, and its last edge ends in the leaf."""
    plan = plans.cascade(N, 0.7, at=(0, 3), children=2, last_step_noise=True)
    trajectories = run((plan,))
    edge, leaf = trajectories.descent
    for index in range(len(trajectories.final)):
        chain = edge[leaf == index]
        chain = chain[trajectories.step[chain].argsort()]
        assert trajectories.step[chain].tolist() == list(range(N))
        assert torch.equal(trajectories.x_next[chain[:-1]], trajectories.x[chain[1:]])
        assert torch.equal(trajectories.x_next[chain[-1]], trajectories.final[index])


def test_condition_reaches_its_own_rows():
    pipeline = elementwise_pipeline()
    made = (plans.plain(N, 0.3, children=2),)
    for prompt, text in enumerate(["-0.5", "0.0", "0.8"]):
        alone = rollout(
            pipeline,
            made,
            condition=pipeline.encode([text]),
            prompt_index=torch.zeros(5, dtype=torch.int64),
            root_seeds=SEEDS,
        )
        together = run(made, pipeline=pipeline, micro_batch=3)
        rows = PROMPTS.eq(prompt).repeat_interleave(2)
        assert torch.equal(alone.final[rows], together.final[rows])


@pytest.mark.parametrize("network", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
def test_storage_and_autocast_may_be_of_different_precisions(storage, network):
    made = EVERY_PLAN["mixed"]
    with torch.autocast("cpu", dtype=network):
        trajectories = run(made, storage_dtype=storage)
    assert trajectories.x.dtype == trajectories.final.dtype == storage
    assert_same(trajectories, run(made, storage_dtype=storage))  # autocast changes no elementwise product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_storage_is_rounded_before_the_walk_goes_on(dtype):
    trajectories = run((plans.plain(N, 0.7, timestep_fraction=1.0, last_step_noise=True),), storage_dtype=dtype)
    assert trajectories.x.dtype == trajectories.x_next.dtype == trajectories.final.dtype == dtype
    assert trajectories.log_prob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    starts, ends = (edges.unflatten(0, (len(SEEDS), N)) for edges in (trajectories.x, trajectories.x_next))
    assert torch.equal(starts[:, 1:], ends[:, :-1])


def test_edges_are_kept_where_asked_and_leaves_stay():
    trajectories = run((plans.plain(N, 0.7),), storage_device="meta")  # a device that holds nothing
    placed = {name: value.device.type for name, value in tensors(trajectories).items()}
    assert placed == dict.fromkeys(placed, "meta") | {"final": "cpu"}
    assert torch.equal(trajectories.final, run((plans.plain(N, 0.7),)).final)


def test_log_prob_is_the_given_density():
    trajectories = run((plans.plain(N, 0.7),), log_prob=gaussian.squared_error_log_prob)
    assert (trajectories.log_prob < 0).all()
    z = -trajectories.log_prob / (0.49 * -elementwise_pipeline().grid(N).sigma.diff()[trajectories.step])
    assert 0.5 < float(z.mean()) < 1.5  # (x' - mean)^2 / std^2 is 1 on average


def test_progress_counts_rows():
    seen = []
    run(EVERY_PLAN["branch all"], micro_batch=8, progress=lambda done, total: seen.append((done, total)))
    total = count_forwards(EVERY_PLAN["branch all"], len(SEEDS))
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_no_gradient_is_kept():
    trajectories = run((plans.plain(N, 0.7),))
    assert not any(value.requires_grad for value in tensors(trajectories).values())


def test_recording_a_step_without_density_fails_before_any_forward():
    pipeline = ToyPipeline(network=torch.nn.Identity(), process=RenoiseProcess())
    made = (plans.plain(N, 0.7, timestep_fraction=1.0, last_step_noise=True),)
    with pytest.raises(ValueError, match=f"step {N - 1} is recorded .* do not record it"):
        run(made, pipeline=pipeline)
    assert pipeline.batches == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": ()}, "root_seeds is empty"),
        ({"prompts": torch.tensor([0, 1])}, r"shape \(5,\), got \(2,\)"),
        ({"prompts": torch.tensor([0, 1, 2, 3, 0])}, "0 to 3 but the condition has 3"),
        ({"micro_batch": 0}, "micro_batch must be at least 1, got 0"),
        ({"grid": elementwise_pipeline().grid(5)}, "6 steps and the grid 5"),
    ],
)
def test_bad_arguments_name_the_value(settings, words):
    with pytest.raises(ValueError, match=words):
        run((plans.plain(N, 0.7),), **settings)
