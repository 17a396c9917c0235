"""Settings and configuration files that cannot be what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.bad_input import Bad, Outcome, assert_refused, meet, meet_alone, named, setting, train

_FROM_FILE = ("--config", "my.yaml")


def in_file(name: str, content: str | bytes, *said: str) -> Bad:
    return train(name, _FROM_FILE, *said, my_yaml=content)


KEYS = [
    setting("misspelt key", "sampling.stepz=4", "sampling.stepz", "unknown key", "did you mean sampling.steps?"),
    setting("misspelt section", "samplin.steps=4", "samplin: unknown key", "did you mean sampling?"),
    setting("key without its section", "steps=4", "steps: unknown key", "sampling.steps or evaluation.steps"),
    setting("key like no other", "zzzz=4", "zzzz: unknown key", "known: name, seed"),
    setting("misspelt key of a reward", "rewards.verifier.weigth=2", "did you mean rewards.verifier.weight?"),
    setting(
        "option of another plan", "sampling.plan.children=3", "sampling.plan.children", "branch or split or cascade"
    ),
    setting("no equals sign", "sampling.steps", "'sampling.steps'", "key.sub=value"),
    setting("dashes", "--sampling.steps=4", "without dashes", "'sampling.steps=4'"),
    setting("empty key", "sampling..steps=4", "'sampling..steps=4'", "empty key"),
    setting("no key", "=4", "'=4' has an empty key"),
    setting("space around a key", "seed =1", "seed : unknown key", "did you mean seed?"),
    setting("letters of another alphabet", "sämpling.steps=4", "sämpling: unknown key", "did you mean sampling?"),
    train("key twice", ("seed=1", "seed=2"), "'seed=2'", "'seed=1'", "give one"),
    train("section and its key", ("sampling={steps: 4}", "sampling.steps=3"), "set the same key", "give one of them"),
    setting("misspelt key in a section", "sampling={steps: 4, stepz: 1}", "did you mean sampling.steps?"),
]
TYPES = [
    setting("text for a number", "sampling.steps=four", "sampling.steps = 'four'", "an integer >= 1"),
    setting("fraction for an integer", "sampling.steps=1.5", "sampling.steps = 1.5", "an integer >= 1"),
    setting("truth for a number", "training.learning_rate=true", "training.learning_rate = true", "a number > 0"),
    setting("number for truth", "overwrite=1", "overwrite = 1", "true or false"),
    setting("yes for truth", "overwrite=yes", "overwrite = 'yes'", "true or false"),
    setting("number for text", "pipeline=3", "pipeline = 3", "must be text", "quotes"),
    setting("number for a section", "training=3", "training = 3", "a mapping with the keys trainable, lora"),
    setting("null for a section", "sampling=null", "sampling = null", "a mapping with the keys steps, guidance"),
    setting("null for a number", "sampling.steps=null", "sampling.steps = null", "an integer >= 1"),
    setting("list for rewards", "rewards=[verifier]", "rewards = ['verifier']", "a mapping, not empty"),
    setting("text for a list", "training.lora.targets=attn", "training.lora.targets = 'attn'", "a list [a, b, ...]"),
    setting("one beta", "training.betas=[0.9]", "training.betas = [0.9]", "2 values"),
    setting("plan without a kind", "sampling.plan=null", "sampling.plan = null", "such as {kind: plain}"),
    setting(
        "unknown choice", "sampling.rule=flow_grp", "'flow_grp'", "flow_grpo, dance, wan, cps, ddim_eta", "did you mean"
    ),
    setting("unknown plan", "sampling.plan.kind=windw", "'windw'", "plain, window, branch", "did you mean 'window'?"),
    setting("value that is no YAML", "prompts.train=[a", "the value of prompts.train", "not YAML", "quote it"),
    setting("value nested too deeply", f"name={'[' * 5000}", "the value of name", "nested too deeply"),
    setting("name with a slash", "name=a/b", "name = 'a/b'", "without spaces or slashes"),
    setting("name of the folder above", "name=..", "name = '..'", "not beginning with a dot"),
    setting("zero byte", 'prompts.train="a\\0b"', "prompts.train = 'a\\x00b'", "without zero bytes"),
]
RANGES = [
    setting("zero", "sampling.samples_per_prompt=0", "sampling.samples_per_prompt = 0", ">= 1"),
    setting("negative count", "training.rollouts=-3", "training.rollouts = -3", "an integer >= 1"),
    setting("negative seed", "seed=-1", "seed = -1", "an integer >= 0"),
    setting("seed beyond 31 bits", "seed=2147483648", "seed = 2147483648", "< 2147483648"),
    setting("count beyond all counting", f"training.rollouts={10**30}", "training.rollouts = 1000", "< 2147483648"),
    setting("more steps than levels of noise", "sampling.steps=5000", "sampling.steps = 5000", "<= 1000"),
    setting("above one", "objective.timestep_fraction=1.5", "objective.timestep_fraction = 1.5", "> 0 and <= 1"),
    setting("not a number", "training.learning_rate=.nan", "training.learning_rate = nan", "> 0"),
    setting("infinite", "training.max_grad_norm=.inf", "training.max_grad_norm = inf", "> 0"),
    setting("infinite by overflow", "training.learning_rate=1e999", "training.learning_rate = inf", "> 0"),
    setting("weight that is not a number", "rewards.verifier.weight=.nan", "rewards.verifier.weight = nan", "a number"),
    setting("negative guidance", "sampling.guidance=-1", "sampling.guidance = -1", ">= 0"),
    setting("beta of one", "training.betas=[0.9, 1.0]", "training.betas = [0.9, 1.0]", "< 1"),
    setting("checkpoints below zero", "training.checkpoint.every=-1", "checkpoint.every = -1", ">= 0"),
    setting("no checkpoint kept", "training.checkpoint.keep=0", "checkpoint.keep = 0", ">= 1"),
    setting("no micro-batch", "training.micro_batch=0", "training.micro_batch = 0", ">= 1"),
]
CONTRADICTIONS = [
    setting("no step to train", "sampling.steps=1", "timestep_fraction = 0.6", "sampling.steps=2 or more"),
    train(
        "KL without a kind",
        ("objective.kl.kind=none", "objective.kl.beta=0.1"),
        "objective.kl.beta = 0.1",
        "choose a kind",
    ),
    setting("group of one", "sampling.samples_per_prompt=1", "sampling.samples_per_prompt = 1", ">= 2"),
    setting("seed groups of one", "objective.advantage.group_by=seed", "group_by = seed", "group_by=prompt"),
    train(
        "window past the end",
        ("sampling.plan.kind=window", "sampling.plan.high=9"),
        "sampling.plan.high = 9",
        "use at most 4",
    ),
    train(
        "window too wide",
        ("sampling.plan.kind=window", "sampling.plan.size=6", "sampling.plan.high=4"),
        "sampling.plan.size = 6",
        "use size <= 4",
    ),
    train("noise above one", ("sampling.rule=cps", "sampling.noise_level=1.5"), "noise_level = 1.5", "at most 1"),
    train("split past the end", ("sampling.plan.kind=split", "sampling.plan.at=9"), "plan.at = 9", "use at most"),
    train(
        "forks that fall",
        ("sampling.plan.kind=cascade", "sampling.plan.at=[2, 1]"),
        "sampling.plan.at = [2, 1]",
        "use [1, 2]",
    ),
    train(
        "last step without noise",
        ("sampling.rule=cps", "objective.timestep_fraction=1.0"),
        "timestep_fraction = 1.0",
        "timestep_fraction=0.99",
    ),
    train(
        "average that is never taken",
        ("training.ema.enabled=true", "training.ema.every=1000"),
        "training.ema.every = 1000",
        "training.ema.enabled=false",
    ),
    setting("no reward that counts", "rewards.verifier.weight=0", "give at least one reward a weight"),
    train("rule of another family", ("sampling.rule=ddim",), "sampling.rule = ddim", "not a rule of flow models"),
    setting("changes without resume", "resume_with_changes=true", "resume_with_changes = true", "use resume=latest"),
    train("resume and overwrite", ("resume=latest", "overwrite=true"), "resume = 'latest'", "use overwrite=false"),
    setting(
        "unknown tracker", "tracking.trackers=[tensorbord]", "'tensorbord'", "tensorboard, wandb, trackio, swanlab"
    ),
    setting("project with a space", "tracking.project=my runs", "tracking.project = 'my runs'", "without spaces"),
]
FILES = [
    train(
        "no such configuration", ("--config", "dem"), "'dem' is unknown", "did you mean 'demo'?", "flow-grpo-tiny-sd3"
    ),
    train("missing file", ("--config", "no/such.yaml"), "no/such.yaml", "no such file", "demo"),
    train("no name of a file", ("--config", ""), "'' is unknown", "or give the path of a YAML file"),
    train("home of nobody", ("--config", "~nobody-here/my.yaml"), "~nobody-here/my.yaml", "no such file"),
    in_file("malformed YAML", "sampling:\n  steps: [1\nseed: 0\n", "my.yaml, line 3", "not YAML"),
    in_file("tabs in YAML", "sampling:\n\tsteps: 4\n", "my.yaml, line 2", "not YAML"),
    in_file("key twice in a file", "seed: 0\nname: a\nseed: 1\n", "my.yaml, line 3", "'seed' is given twice"),
    in_file("two documents", "seed: 1\n---\nseed: 2\n", "my.yaml, line 2", "not YAML"),
    in_file("code in YAML", "seed: !!python/object/apply:os.getpid []\n", "my.yaml, line 1", "not YAML"),
    in_file("YAML that holds itself", "sampling: &a\n  steps: *a\n", "sampling.steps", "an integer >= 1"),
    in_file("empty file", "", "my.yaml", "is empty", "pipeline: tiny-sd3"),
    in_file("list", "- 1\n- 2\n", "my.yaml", "key: value"),
    in_file("number for a key", "1: 2\n", "my.yaml: 1 is not the name of a key"),
    in_file("no text", b"\x80\x81\x00", "my.yaml: is not UTF-8 text", "give a YAML file"),
    in_file("too large a file", "#" * (2 << 20), "my.yaml: is larger than", "give a YAML file"),
    in_file("missing base", "base: other.yaml\n", "base = other.yaml", "no such file"),
    in_file("base that is a list", "base: [a, b]\n", "base = ['a', 'b']", "the path of one YAML file"),
    Bad(
        "base of a base",
        ("train", *_FROM_FILE),
        ("b.yaml: has a base itself", "name that base in my.yaml"),
        {"my.yaml": "base: b.yaml\n", "b.yaml": "base: c.yaml\n", "c.yaml": "seed: 1\n"},
    ),
]
COMMANDS = [
    Bad("validate", ("config", "validate", "seed=x"), ("seed = 'x'", "an integer >= 0")),
    Bad("show", ("config", "show", "seed=x"), ("seed = 'x'", "an integer >= 0")),
    Bad("diff with nothing", ("config", "diff", "demo", "dmo"), ("'dmo' is unknown", "did you mean 'demo'?")),
    Bad("diff with no YAML", ("config", "diff", "demo", "b.yaml"), ("b.yaml, line 1: not YAML",), {"b.yaml": "["}),
    Bad("plan for no processes", ("plan", "--processes", "two"), ("--processes 'two'", "--processes 1,2,8,48")),
    Bad("status of nothing", ("status", "nowhere"), ("nowhere is not a folder", "the folder of a run")),
    Bad("status of a file", ("status", "a"), ("a is not a folder",), {"a": "x"}),
    Bad("status of another folder", ("status", "a"), ("a holds nothing that a run writes",), {"a/thesis.tex": "x"}),
]
CASES = [*KEYS, *TYPES, *RANGES, *CONTRADICTIONS, *FILES, *COMMANDS]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return meet(CASES, tmp_path_factory.mktemp("settings"))


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_setting_is_refused(bad: Bad, outcomes: dict[str, Outcome]):
    assert_refused(bad, outcomes[bad.name])


@pytest.mark.parametrize(
    "bad", named(CASES, "misspelt key", "malformed YAML", "status of a file"), ids=lambda b: b.name
)
def test_setting_is_refused_by_a_process_of_its_own(bad: Bad, tmp_path: Path):
    assert_refused(bad, meet_alone(bad, tmp_path))
