"""Everything that is wrong with a search before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.bad_input import Bad, Outcome, assert_refused, meet, meet_alone, named

_PROMPT = ("--prompt", "two red circles")
_OUT = ("--out", "out")


def search(name: str, arguments: tuple[str, ...], *said: str, files: Mapping[str, str] | None = None) -> Bad:
    return Bad(name, ("search", *_PROMPT, *_OUT, *arguments), said, files or {})


def prompts(name: str, file: str, content: str, *said: str) -> Bad:
    return Bad(name, ("search", "--prompts", file, *_OUT), ("--prompts", file, *said), {file: content})


CASES = [
    search("two budgets", ("--n", "4", "--budget-nfe", "90"), "--n 4 and --budget-nfe 90", "give exactly one"),
    search("budget below one", ("--budget-nfe", "31"), "--budget-nfe 31", "below one candidate", "at least 32"),
    search("no candidates", ("--n", "0"), "--n 0", "above 0"),
    search("endless budget", ("--budget-seconds", "inf"), "--budget-seconds inf", "finite number above 0"),
    search("keep above all", ("--stages", "0.8:1.5"), "keep = '1.5'", "a share in (0, 1]", "a count"),
    search("keep nobody", ("--stages", "0.8:0"), "keep = '0'", "a share in (0, 1]"),
    search("rising stages", ("--stages", "0.6:0.5,0.8:0.5"), "0.6 is followed by 0.8", "reorder them"),
    search("stage without keep", ("--stages", "0.8"), "'0.8' is not SIGMA:KEEP"),
    search("unknown branch", ("--stages", "0.8:0.5:cond"), "branch = 'cond'", "guided, conditional"),
    search("noise-free stage", ("--stages", "0:0.5"), "sigma = '0'", "scored anyway"),
    search("stages of best-of-n", ("--method", "best-of-n", "--stages", "0.8:0.5"), "takes none", "leave them out"),
    search("unknown method", ("--method", "prunned"), "--method 'prunned'", "did you mean 'pruned'?"),
    search("unknown reward", ("--reward", "verifyer"), "reward 'verifyer'", "did you mean 'verifier'?"),
    search("weight of nothing", ("--reward", "verifier:0"), "weight = 0", "leave verifier out"),
    search("weight in words", ("--reward", "verifier:much"), "'verifier:much' is not NAME or NAME:WEIGHT"),
    search("reward twice", ("--reward", "verifier,verifier"), "names verifier twice"),
    search("reward of groups", ("--reward", "clip-diversity"), "compares the samples of a prompt", "leave it out"),
    search("idle preview", ("--method", "random", "--preview", "tiny-clip"), "scores no estimates", "leave it out"),
    search("unknown aggregate", ("--aggregate", "ranksum"), "--aggregate 'ranksum'", "did you mean 'rank-sum'?"),
    search("unknown pipeline", ("--pipeline", "tiny-sd4"), "--pipeline 'tiny-sd4'", "did you mean 'tiny-sd3'?"),
    search("LoRA that is not there", ("--lora", "nowhere"), "--lora 'nowhere'", "pytorch_lora_weights.safetensors"),
    search("half a cell", ("--size", "30"), "multiples of 12 pixels"),
    search("size in words", ("--size", "big"), "--size 'big'", "WIDTHxHEIGHT"),
    search("no steps", ("--steps", "0"), "--steps 0", "from 1 to 1000"),
    search("rule of another family", ("--rule", "ddim"), "--rule ddim", "flow_grpo"),
    search("unknown precision", ("--dtype", "float8"), "--dtype 'float8'", "bfloat16"),
    search("shard nought", ("--shard", "0/4"), "--shard '0/4'", "1/4 to 4/4"),
    search("empty shard", ("--shard", "2/2"), "has none of 1 prompts", "fewer shards"),
    search("no rows", ("--micro-batch", "0"), "--micro-batch 0", "at least 1"),
    search("counts in published accounting", ("--accounting", "published", "--stages", "0.8:4"), "shares only"),
    search("another run", (), "--out 'out'", "already holds a search", "--resume", files={"out/run.json": "{}"}),
    search("somebody's folder", ("--resume",), "not of a search", "never overwritten", files={"out/a.txt": "mine"}),
    search("a file", (), "is not a folder", files={"out": "mine"}),
    search("the same twice", _PROMPT, "is given twice", "remove one"),
    search("beyond the reward", ("--prompt", "a cat"), "reward 'tiny-clip' cannot score 'a cat'"),
    search("two sources of prompts", ("--prompts", "p.txt"), "both given", files={"p.txt": "a red circle\n"}),
    Bad("no prompts", ("search", *_OUT), ("neither given", "give a file, or one or more texts")),
    Bad("no folder", ("search", *_PROMPT), ("--out: is missing", "--dry-run")),
    Bad(
        "no stages",
        ("search", "--pipeline", "tiny-sd15", "--method", "pruned", "-r", "verifier", *_PROMPT, *_OUT),
        ("needs --stages", "transfer badly"),
    ),
    Bad("no reward", ("search", "--pipeline", "tiny-sd15", *_PROMPT, *_OUT), ("--reward: is missing", "rewards list")),
    prompts("broken line", "p.jsonl", '{"prompt": "a red circle"}\n{"prompt"\n', "line 2", "is not JSON"),
    prompts("a list", "p.json", '["a red circle"]', ".json files are not read"),
    prompts("empty file", "p.txt", "\n", "holds no prompt"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return meet(CASES, tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_refused_in_words(bad: Bad, outcomes: dict[str, Outcome]):
    assert_refused(bad, outcomes[bad.name])


def test_as_its_user_would_meet_it(tmp_path: Path):
    (bad,) = named(CASES, "two budgets")
    assert_refused(bad, meet_alone(bad, tmp_path / "alone"))
