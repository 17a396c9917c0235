"""What a reward cannot score is asked again, marked with a reason, or the end; never a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from difalign.core.answers import checked
from difalign.core.errors import ConfigError
from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.asking import Question, ask
from difalign.reward_models.composite import CompositeReward, Gate, Term

PROMPTS = ["1", "2", "3", "4"]


@dataclass
class Flaky:
    """Scores a prompt as its number; of some, only when asked often enough."""

    asks_needed: dict[str, int] = field(default_factory=dict)
    error: Exception | None = None
    asked: list[list[str]] = field(default_factory=list)
    told: list[object] = field(default_factory=list)
    name: str = "flaky"
    differentiable: bool = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        self.asked.append(list(prompts))
        self.told.append(metadata)
        if self.error is not None:
            raise self.error
        for prompt in prompts:
            self.asks_needed[prompt] = self.asks_needed.get(prompt, 1) - 1
        valid = torch.tensor([self.asks_needed[prompt] <= 0 for prompt in prompts])
        numbers = torch.tensor([float(prompt) for prompt in prompts])
        errors = {row: f"busy with {prompts[row]}" for row in range(len(prompts)) if not valid[row]}
        return RewardOutput(torch.where(valid, numbers, -1.0), {"double": 2 * numbers}, valid, errors)


def question() -> Question:
    return Question(torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2), PROMPTS, [{"n": i} for i in range(4)])


def test_only_what_has_no_score_is_asked_again():
    reward = Flaky({"2": 2, "4": 3})
    answer = ask(reward, question(), on_error="raise", retries=5)
    assert reward.asked == [PROMPTS, ["2", "4"], ["4"]]
    assert reward.told[1] == [{"n": 1}, {"n": 3}]
    assert answer.scores.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert answer.components["double"].tolist() == [2.0, 4.0, 6.0, 8.0]
    assert not answer.errors


def test_what_is_dropped_is_no_number_and_has_a_reason():
    answer = ask(Flaky({"2": 9, "4": 2}), question(), on_error="drop", retries=1)
    assert answer.valid is not None
    assert answer.valid.tolist() == [True, False, True, True]
    assert answer.scores[answer.valid].tolist() == [1.0, 3.0, 4.0]
    assert bool(answer.scores[1].isnan())  # and not the -1 that the reward put there
    assert answer.errors == {1: "busy with 2"}


def test_otherwise_it_is_the_end_with_prompt_reason_and_remedy():
    words = r"flaky has no score for 2 of 4 .*'2': busy with 2; .*rewards\.flaky\.on_error=drop"
    with pytest.raises(ValueError, match=words):
        ask(Flaky({"2": 9, "4": 9}), question(), on_error="raise", retries=1)


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("odd"), ValueError("bad")])
def test_an_exception_is_a_failure_of_all_that_were_asked(error):
    reward = Flaky(error=error)
    answer = ask(reward, question(), on_error="drop", retries=2)
    assert set(answer.errors) == {0, 1, 2, 3}
    assert answer.errors[0] == f"{type(error).__name__}: {error}"
    assert len(reward.asked) == 3
    with pytest.raises(type(error), match=str(error)):
        ask(Flaky(error=error), question(), on_error="raise")


def test_what_the_user_must_correct_is_never_dropped():
    with pytest.raises(ConfigError, match="start the server"):
        ask(Flaky(error=ConfigError("start the server")), question(), on_error="drop")


def test_a_number_that_is_none_is_found_though_it_is_not_marked():
    answer = checked("odd", RewardOutput(torch.tensor([1.0, float("nan"), float("inf")])), ["a", "b", "c"])
    assert answer.errors.keys() == {1, 2}
    assert "gave inf; it must be a finite number" in answer.errors[2]
    assert answer.scores.isnan().tolist() == [False, True, True]


# --- in a sum ----------------------------------------------------------------------------------------------------


def test_a_sample_without_a_part_has_no_reward_unless_the_part_counts_for_nothing():
    def total(weight: float) -> RewardOutput:
        part = Term(Flaky({"3": 9}), weight, on_error="drop")
        rewards = CompositeReward({"sure": Term(Flaky(name="sure"), 10.0), "flaky": part})
        return rewards.score(question().media, PROMPTS)

    missing = total(1.0)
    assert missing.scores.isnan().tolist() == [False, False, True, False]
    assert missing.errors == {2: "flaky: busy with 3"}
    assert missing.components["sure"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert total(0.0).scores.tolist() == [10.0, 20.0, 30.0, 40.0]


def test_constants_change_the_unit_and_both_are_logged():
    reward = CompositeReward({"n": Term(Flaky(), 0.5, mean=2.0, std=4.0)})
    output = reward.score(question().media, PROMPTS)
    assert output.scores.tolist() == [0.5 * (n - 2.0) / 4.0 for n in (1, 2, 3, 4)]
    assert output.components["n"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert output.components["n/scaled"].tolist() == [-0.25, 0.0, 0.25, 0.5]


def test_a_gate_replaces_the_whole_reward_by_the_raw_score():
    gate = Term(Flaky(), 0.0, mean=100.0, std=1.0, gate=Gate(at_least=3.0, otherwise=-7.0))
    reward = CompositeReward({"sum": Term(Flaky(), 10.0), "gate": gate})
    assert reward.score(question().media, PROMPTS).scores.tolist() == [-7.0, -7.0, 30.0, 40.0]


@dataclass
class Later:
    """Is asked at once and answers when it must."""

    log: list[str]
    error: Exception | None = None
    name: str = "later"
    differentiable: bool = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        raise AssertionError("submit is there to be used")

    def submit(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> Later:
        self.log.append("asked")
        return self

    def result(self) -> RewardOutput:
        self.log.append("answered")
        if self.error is not None:
            raise self.error
        return RewardOutput(torch.ones(4))


def test_what_is_computed_elsewhere_is_asked_first_and_awaited_last():
    log: list[str] = []

    @dataclass
    class Here(Flaky):
        def score(
            self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
        ) -> RewardOutput:
            log.append("here")
            return super().score(media, prompts, metadata=metadata, sigma=sigma)

    reward = CompositeReward({"here": Term(Here()), "later": Term(Later(log))})
    pending = reward.submit(question().media, PROMPTS)
    assert log == ["asked", "here"]
    assert pending.result().scores.tolist() == [2.0, 3.0, 4.0, 5.0]
    assert log == ["asked", "here", "answered"]


def test_a_late_failure_is_raised_or_dropped_as_well():
    lost = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        CompositeReward({"later": Term(Later([], lost))}).score(question().media, PROMPTS)
    dropped = CompositeReward({"later": Term(Later([], lost), on_error="drop")}).score(question().media, PROMPTS)
    assert bool(dropped.scores.isnan().all())
    assert dropped.errors[0] == "later: OSError: gone"


@dataclass
class Heavy(Flaky):
    places: list[str] = field(default_factory=list)

    def to(self, device: str | torch.device) -> None:
        self.places.append(str(device))


def test_weights_wait_on_the_cpu_between_two_scorings():
    heavy = Heavy()
    reward = CompositeReward({"heavy": Term(heavy, home="meta")})
    reward.score(question().media, PROMPTS)
    assert heavy.places == ["meta", "cpu"]
    heavy.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        reward.score(question().media, PROMPTS)
    assert heavy.places == ["meta", "cpu"] * 2
