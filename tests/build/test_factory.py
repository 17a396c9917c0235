"""Names become the objects they stand for, and cards' arguments arrive."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from difalign.build.cards import Found, PipelineCard, RewardCard, load_reward_card
from difalign.build.factory import build_pipeline, build_process, build_reward
from difalign.core.config import KLConfig, RuleName
from difalign.core.config_rewards import RewardConfig
from difalign.core.errors import ConfigError
from difalign.core.families import FAMILIES
from difalign.process.diffusion import DIFFUSION_RULES, DiffusionProcess
from difalign.process.flow import FlowProcess, RenoiseProcess
from difalign.process.rules import FLOW_RULES, STD_RULES
from difalign.reward_models.composite import Gate

USER_MODULE = """
class Adapter:
    def __init__(self, source, options):
        self.source, self.options = source, options

    @classmethod
    def from_pretrained(cls, source, **options):
        return cls(source, options)

class Strict:
    @classmethod
    def from_pretrained(
        cls, source, *, process, guidance_scale, detach_uncond, height, width, dtype, device, revision
    ):
        raise AssertionError("its options are wrong")

class Broken:
    @classmethod
    def from_pretrained(cls, source, **options):
        raise ValueError("no weights of that name")

class Gone:
    @classmethod
    def from_pretrained(cls, source, **options):
        open(source / "weights")

class Taste:
    def __init__(self, *, share, device):
        if share > 1:
            raise ValueError(f"share is {share}; at most 1")
        self.share, self.device = share, device
        self.name, self.differentiable = "taste", False

    def score(self, media, prompts, *, metadata=None, sigma=None):
        from difalign.core.types import RewardOutput
        return RewardOutput(media.flatten(1).mean(1) * self.share)

class Heavy(Taste):
    def to(self, device):
        self.place = str(device)

number = 3
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_models.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_every_rule_can_be_named():
    assert set(get_args(RuleName)) == {*FLOW_RULES, *STD_RULES, *DIFFUSION_RULES}
    assert {rule for family in FAMILIES.values() for rule in family.rules} == set(get_args(RuleName))
    for rule in get_args(RuleName):
        process = build_process(rule)
        if rule in FLOW_RULES:
            assert process == FlowProcess(rule=FLOW_RULES[rule])
        elif rule in DIFFUSION_RULES:
            assert process == DiffusionProcess()
        else:
            assert process == RenoiseProcess(std_rule=STD_RULES[rule])


def test_every_divergence_can_be_named():
    from difalign.objective.kl import KL_TYPES

    assert set(get_args(KLConfig.model_fields["kind"].annotation)) == {"none", *KL_TYPES}


def test_every_step_weight_can_be_named():
    from difalign.core.config import ObjectiveConfig
    from difalign.objective.weights import STEP_WEIGHTS

    assert set(get_args(ObjectiveConfig.model_fields["weight"].annotation)) == set(STEP_WEIGHTS)


def pipeline_card(target: str) -> Found[PipelineCard]:
    card = PipelineCard(
        name="mine",
        summary="s",
        licence="MIT",
        target=target,
        path="weights",
        dtype="bfloat16",
        height=64,
        width=32,
        options={"max_sequence_length": 7},
    )
    return Found(card, Path("folder/card.yaml"))


def test_pipeline_gets_what_its_card_and_the_run_say():
    process = build_process("cps")
    adapter = build_pipeline(
        pipeline_card("user_models:Adapter"), process=process, guidance=2.0, device="cpu", height=128
    )
    assert vars(adapter) == {
        "source": Path("folder/weights"),
        "options": {
            "process": process,
            "guidance_scale": 2.0,
            "detach_uncond": False,
            "height": 128,
            "width": 32,
            "dtype": torch.bfloat16,
            "device": "cpu",
            "revision": None,
            "max_sequence_length": 7,
        },
    }


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("user_models:Strict", r"options\.max_sequence_length: unknown option; .*known: source, process"),
        ("user_models:Broken", "pipeline 'mine' could not be loaded: no weights of that name"),
        ("user_models:Gone", "pipeline 'mine' could not be loaded: .*No such file"),
    ],
)
def test_pipeline_that_cannot_be_loaded_is_named(target: str, said: str):
    with pytest.raises(ConfigError, match=said):
        build_pipeline(pipeline_card(target), process=build_process("cps"), guidance=1.0, device="cpu")


def test_target_that_loads_nothing_is_refused():
    with pytest.raises(ConfigError, match="no from_pretrained"):
        build_pipeline(pipeline_card("user_models:Taste"), process=build_process("cps"), guidance=1.0, device="cpu")


def reward_card(target: str) -> Found[RewardCard]:
    card = RewardCard(name="taste", summary="s", licence="MIT", target=target, options={"share": 0.5}, on_device=True)
    return Found(card, Path("taste.yaml"))


def test_rewards_are_summed_with_their_weights():
    configs = {"taste": RewardConfig(weight=-4.0, options={"share": 0.25})}
    reward = build_reward({"taste": reward_card("user_models:Taste")}, configs, device="cpu")
    media = torch.full((2, 3, 4, 4), 0.5)
    output = reward.score(media, ["a", "b"])
    assert output.scores.tolist() == [-0.5, -0.5]
    assert output.components["taste"].tolist() == [0.125, 0.125]


def test_reward_that_refuses_its_options_is_named():
    configs = {"taste": RewardConfig(options={"share": 2.0})}
    with pytest.raises(ConfigError, match=r"reward 'taste': share is 2\.0; at most 1"):
        build_reward({"taste": reward_card("user_models:Taste")}, configs, device="cpu")
    with pytest.raises(ConfigError, match="cannot be called"):
        build_reward({"taste": reward_card("user_models:number")}, {"taste": RewardConfig()}, device="cpu")


def test_what_the_configuration_says_of_a_term():
    statistics = {"mean": 2.0, "within_prompt_std": 0.5, "source": "s"}
    card = RewardCard.model_validate(
        {
            **reward_card("user_models:Taste").card.model_dump(),
            "statistics": statistics,
            "scales": {"peer": {"mean": 1.0, "std": 4.0}},
        }
    )
    found = Found(card, Path("taste.yaml"))
    configs = {
        "measured": {"scale": {"kind": "fixed"}},
        "peer": {"scale": {"kind": "fixed", "constants": "peer"}},
        "own": {"scale": {"kind": "fixed", "mean": -1.0, "std": 0.25}},
        "raw": {"gate": {"at_least": 0.5, "otherwise": -2.0}, "on_error": "drop", "retries": 3},
    }
    given = {name: RewardConfig.model_validate(config) for name, config in configs.items()}
    terms = build_reward(dict.fromkeys(given, found), given, device="cpu").terms
    assert [(term.mean, term.std) for term in terms.values()] == [(2.0, 0.5), (1.0, 4.0), (-1.0, 0.25), (None, None)]
    assert (terms["raw"].gate, terms["raw"].on_error, terms["raw"].retries) == (Gate(0.5, -2.0), "drop", 3)
    assert terms["own"].on_error == "raise"
    lenient = Found(card.model_copy(update={"on_error": "drop"}), Path("taste.yaml"))
    both = {"card": RewardConfig(), "run": RewardConfig(on_error="raise")}
    kept = build_reward(dict.fromkeys(both, lenient), both, device="cpu").terms
    assert [term.on_error for term in kept.values()] == ["drop", "raise"]
    assert len({id(term.reward) for term in terms.values()}) == 1  # one model, however often it is named
    other = {"raw": RewardConfig(), "less": RewardConfig(options={"share": 0.25})}
    terms = build_reward(dict.fromkeys(other, found), other, device="cpu").terms
    assert terms["raw"].reward is not terms["less"].reward


def test_one_that_waits_elsewhere_is_not_shared_with_one_that_does_not():
    found = reward_card("user_models:Heavy")
    configs = {"stays": RewardConfig(), "waits": RewardConfig(offload=True)}
    terms = build_reward(dict.fromkeys(configs, found), configs, device="meta").terms
    assert terms["stays"].reward is not terms["waits"].reward
    assert vars(terms["waits"].reward)["place"] == "cpu"
    assert "place" not in vars(terms["stays"].reward)
    assert (terms["stays"].home, terms["waits"].home) == (None, "meta")


def test_what_has_no_weights_cannot_wait_elsewhere():
    with pytest.raises(ConfigError, match=r"'taste': offload = true: it has no weights to move"):
        build_reward({"taste": reward_card("user_models:Taste")}, {"taste": RewardConfig(offload=True)}, device="cpu")


def test_shipped_verifier():
    found = {"verifier": load_reward_card("verifier")}
    reward = build_reward(found, {"verifier": RewardConfig(options={"strict_share": 0.25})}, device="cpu")
    scores = reward.score(torch.zeros(1, 3, 36, 36), ["a red circle"]).components
    expected = 0.25 * scores["verifier/strict"] + 0.75 * scores["verifier/partial"]
    assert torch.equal(scores["verifier"], expected)


def test_reward_with_weights_gets_them_its_options_and_the_device():
    card = RewardCard(
        name="mine",
        summary="s",
        licence="MIT",
        target="user_models:Adapter",
        path="weights",
        options={"scale": "cosine"},
        on_device=True,
    )
    found = Found(card, Path("folder/card.yaml"))
    configs = {"mine": RewardConfig(options={"scale": "logit"})}
    reward = build_reward({"mine": found}, configs, device="cpu").terms["mine"].reward
    assert vars(reward) == {
        "source": Path("folder/weights"),
        "options": {"scale": "logit", "device": "cpu"},
    }
    pinned = Found(card.model_copy(update={"path": None, "hub_id": "a/b", "revision": "v1"}), Path("card.yaml"))
    reward = build_reward({"mine": pinned}, {"mine": RewardConfig()}, device="cpu").terms["mine"].reward
    assert vars(reward) == {"source": "a/b", "options": {"scale": "cosine", "device": "cpu", "revision": "v1"}}
    single = Found(card.model_copy(update={"file": "w.pt", "sha256": "0" * 64}), Path("folder/card.yaml"))
    reward = build_reward({"mine": single}, {"mine": RewardConfig(device="meta")}, device="cpu").terms["mine"].reward
    assert vars(reward)["options"] == {"scale": "cosine", "device": "meta", "file": "w.pt", "sha256": "0" * 64}
    nothing_to_load = Found(card.model_copy(update={"target": "user_models:Taste"}), Path("folder/card.yaml"))
    with pytest.raises(ConfigError, match="has no from_pretrained"):
        build_reward({"mine": nothing_to_load}, {"mine": RewardConfig()}, device="cpu")


@pytest.mark.parametrize("name", ["geneval", "hpsv3", "remote"])
def test_a_reward_whose_server_is_down_stops_the_run_before_it_samples(name: str):
    """Port 9, discard, is served by nobody."""
    config = RewardConfig(options={"url": "http://127.0.0.1:9", "retries": 0})
    with pytest.raises(ConfigError, match=rf"reward '{name}': no reward server answers: http://127\.0\.0\.1:9 does"):
        build_reward({name: load_reward_card(name)}, {name: config}, device="cpu")
