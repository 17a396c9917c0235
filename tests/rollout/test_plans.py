import pytest

from difalign.core.types import StepPlan
from difalign.rollout import plans
from difalign.rollout.trie import count_edges, count_forwards, count_leaves

ODE = StepPlan()
NOISY = StepPlan(0.7)
TRAINED = StepPlan(0.7, record=True)


def steps(plan, condition):
    return [i for i, entry in enumerate(plan) if condition(entry)]


def test_plain_is_flow_grpo():
    assert plans.plain(10, 0.7) == (TRAINED,) * 9 + (ODE,)
    assert plans.plain(10, 0.7, last_step_noise=True) == (TRAINED,) * 9 + (NOISY,)
    assert plans.plain(10, 0.7, last_step_noise=True, timestep_fraction=1.0) == (TRAINED,) * 10
    assert plans.plain(10, 0.7, timestep_fraction=0.6) == (TRAINED,) * 6 + (NOISY,) * 3 + (ODE,)


def test_timestep_fraction_survives_floating_point():
    assert sum(entry.record for entry in plans.plain(100, 0.7, timestep_fraction=0.29)) == 29


def test_plain_with_children_shares_only_the_initial_latent():
    plan = plans.plain(4, 0.7, children=6)
    assert [entry.fan_out for entry in plan] == [6, 1, 1, 1]
    assert count_forwards((plan,)) == 1 + 6 * 3


def test_window_is_stochastic_and_recorded_inside_only():
    assert plans.window(6, 0.7, start=2, size=3) == (ODE, ODE, TRAINED, TRAINED, TRAINED, ODE)
    forked = plans.window(6, 0.7, start=2, size=2, children=4)
    assert [entry.fan_out for entry in forked] == [1, 1, 4, 1, 1, 1]
    assert count_forwards((forked,)) == 3 + 4 * 3


def test_full_window_equals_plain_flow_grpo():
    assert plans.window(10, 0.7, start=0, size=9) == plans.plain(10, 0.7)


def test_single_child_branch_is_a_window_of_one():
    assert plans.branch(10, 0.7, children=1, at=(3,)) == (plans.window(10, 0.7, start=3, size=1),)


def test_branch_has_one_stochastic_step_a_plan():
    made = plans.branch(6, 0.7, children=5, at=plans.all_steps(6))
    assert len(made) == 5
    for step, plan in enumerate(made):
        assert steps(plan, lambda entry: entry.noise_level > 0) == [step]
        assert plan[step] == StepPlan(0.7, 5, record=True)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("at", "forwards"), [(plans.all_steps(10), 279), (plans.early_steps(10, 3), 147)], ids=["all", "early"]
)
def test_tempflow_forward_counts(at, forwards):
    made = plans.branch(10, 0.7, children=6, at=at)
    assert count_forwards(made) == forwards
    assert count_forwards(made, 4) == 4 * forwards
    assert count_leaves(made) == 6 * len(at)  # rewards: K times the branch steps
    assert count_edges(made) == 6 * len(at)


def test_tempflow_trunk_is_paid_once():
    n, k = 12, 3
    made = plans.branch(n, 0.7, children=k, at=plans.all_steps(n))
    assert count_forwards(made) == (n - 1) + k * sum(n - 1 - i for i in range(n - 1))


def test_sampled_steps_depend_on_seed_and_epoch_alone():
    first = plans.sampled_steps(10, 4, seed=1, epoch=2)
    assert first == plans.sampled_steps(10, 4, seed=1, epoch=2) == tuple(sorted(set(first)))
    drawn = {step for epoch in range(60) for step in plans.sampled_steps(10, 2, seed=1, epoch=epoch)}
    assert drawn == set(range(9))


@pytest.mark.golden
def test_branchgrpo_counts():
    plan = plans.cascade(20, 0.3, at=(0, 3, 6, 9), children=2, last_step_noise=True)
    assert count_leaves((plan,)) == 16
    assert count_edges((plan,)) == 218
    assert count_forwards((plan,)) == 203


def test_cascade_window_keeps_noise_at_the_forks():
    plan = plans.cascade(10, 0.3, at=(0, 6), children=2, noisy=(1, 2))
    assert steps(plan, lambda entry: entry.record) == [0, 1, 2, 6]
    assert steps(plan, lambda entry: entry.noise_level > 0) == [0, 1, 2, 6]


def test_split_shares_a_stochastic_prefix_and_trains_the_suffix():
    plan = plans.split(20, 1.0, at=6, children=5, last_step_noise=True)
    assert steps(plan, lambda entry: entry.record) == list(range(6, 20))
    assert all(entry.noise_level == 1.0 for entry in plan)
    # the fork is evaluated once: (N-s) + 1 + K (s-1) with s = 14
    assert count_forwards((plan,)) == 6 + 1 + 5 * 13
    assert plans.split(20, 1.0, at=6, children=5)[-1] == ODE
    assert plans.split(4, 1.0, at=2, children=2, train_prefix=True)[0].record


def test_deterministic_records_nothing():
    assert count_edges((plans.deterministic(7),)) == 0
    assert count_forwards((plans.deterministic(7),), 3) == 21


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: plans.plain(0, 0.7), "num_steps"),
        (lambda: plans.plain(10, 0.0), "step 0 is recorded but deterministic"),
        (lambda: plans.plain(10, -0.1), "-0.1"),
        (lambda: plans.plain(10, float("nan")), "nan"),
        (lambda: plans.plain(10, 0.7, timestep_fraction=0.05), "records nothing"),
        (lambda: plans.plain(10, 0.7, timestep_fraction=1.2), "1.2"),
        (lambda: plans.plain(10, 0.7, children=0), "fan_out"),
        (lambda: plans.window(10, 0.7, start=8, size=3), r"\[8, 11\)"),
        (lambda: plans.window(10, 0.7, start=3, size=0), "at least one step"),
        (lambda: plans.branch(10, 0.7, children=6, at=(9,)), "last step 9"),
        (lambda: plans.branch(10, 0.7, children=6, at=(1, 1)), "repeats"),
        (lambda: plans.branch(10, 0.7, children=6, at=()), "empty"),
        (lambda: plans.branch(10, 0.7, children=6, at=(10,)), "outside"),
        (lambda: plans.early_steps(10, 10), "1 to 9"),
        (lambda: plans.sampled_steps(10, 0, seed=0, epoch=0), "1 to 9"),
        (lambda: plans.split(10, 0.7, at=9, children=2), "deterministic last step"),
        (lambda: plans.split(10, 0.7, at=2, children=1), "at least 2"),
        (lambda: plans.cascade(10, 0.7, at=(9,), children=2), "deterministic last step"),
        (lambda: plans.cascade(10, 0.7, at=(), children=2), "at="),
        (lambda: plans.validate(()), "no plan"),
        (lambda: plans.validate((plans.deterministic(3), plans.deterministic(4))), r"\[3, 4\]"),
        (lambda: plans.validate((plans.deterministic(3), plans.deterministic(3))), "equal"),
    ],
)
def test_bad_plans_name_the_value_and_the_remedy(build, words):
    with pytest.raises(ValueError, match=words):
        build()
