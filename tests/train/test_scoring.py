"""Decoding and scoring: row by row the same in any micro-batch, and nothing that is no number gets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput
from difalign.train.scoring import decode_and_score, decode_in_batches
from tests.toys import ElementwisePolicy, ToyPipeline

ROWS = 7


@dataclass
class CountingDecoder(ToyPipeline):
    """Decodes by a sigmoid and counts the rows of every call."""

    decoded: list[int] = field(default_factory=list)

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded.append(latents.shape[0])
        return torch.sigmoid(latents * self.network.gain).to(torch.float64)


@dataclass
class PromptTimesMean:
    """The prompt's number times the mean pixel: a shifted prompt shows."""

    name: str = "times"
    differentiable: bool = True
    scored: list[int] = field(default_factory=list)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        assert len(media) == len(prompts)
        self.scored.append(len(prompts))
        numbers = torch.tensor([float(prompt) for prompt in prompts], dtype=media.dtype)
        mean = media.flatten(1).mean(dim=1)
        return RewardOutput(numbers * mean, {"mean": mean, "number": numbers})


def latents() -> Tensor:
    return torch.randn(ROWS, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def prompts() -> list[str]:
    return [str(i) for i in range(ROWS)]


def pipeline() -> CountingDecoder:
    return CountingDecoder(ElementwisePolicy(), latent=(3, 4, 4))


@pytest.mark.parametrize("micro_batch", [1, 2, 3, ROWS, 100])
def test_micro_batches_change_nothing_but_memory(micro_batch) -> None:
    model, reward = pipeline(), PromptTimesMean()
    media = decode_and_score(model, reward, latents(), prompts(), micro_batch=micro_batch, keep_pixels=True)
    pixels = torch.sigmoid(latents() * 0.1).double()
    mean = pixels.flatten(1).mean(dim=1)
    torch.testing.assert_close(media.scores, (torch.arange(ROWS) * mean).float(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(media.components["mean"], mean.float(), rtol=1e-6, atol=0.0)
    assert media.components["number"].tolist() == [float(i) for i in range(ROWS)]
    assert media.pixels is not None
    torch.testing.assert_close(media.pixels, pixels.float(), rtol=1e-6, atol=0.0)
    sizes = [min(micro_batch, ROWS - start) for start in range(0, ROWS, micro_batch)]
    assert model.decoded == reward.scored == sizes


def test_results_are_float32_without_a_graph() -> None:
    media = decode_and_score(pipeline(), PromptTimesMean(), latents(), prompts(), micro_batch=4, keep_pixels=True)
    for value in (media.scores, media.pixels, *media.components.values()):
        assert value is not None
        assert value.dtype == torch.float32
        assert not value.requires_grad


def test_pixels_are_dropped_unless_wanted() -> None:
    assert decode_and_score(pipeline(), PromptTimesMean(), latents(), prompts(), micro_batch=4).pixels is None


@dataclass(frozen=True)
class Broken:
    """Not a number for one prompt."""

    value: float
    name: str = "broken"
    differentiable: bool = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        return RewardOutput(torch.tensor([self.value if prompt in {"4", "6"} else 1.0 for prompt in prompts]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_no_numbers_name_reward_value_and_first_prompt(value) -> None:
    with pytest.raises(ValueError, match=rf"reward broken gave {value} for '4'; it must be a finite number"):
        decode_and_score(pipeline(), Broken(value), latents(), prompts(), micro_batch=3)


@dataclass(frozen=True)
class _Short:
    """One score too few, or a column of them."""

    shape: tuple[int, ...]
    name: str = "short"
    differentiable: bool = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        return RewardOutput(torch.zeros(self.shape))


@pytest.mark.parametrize("shape", [(ROWS - 1,), (ROWS, 1), ()])
def test_there_must_be_one_score_a_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"reward short gave scores of shape .* for {ROWS} samples"):
        decode_and_score(pipeline(), _Short(shape), latents(), prompts(), micro_batch=ROWS)


@pytest.mark.parametrize("micro_batch", [2, ROWS])
def test_decoding_alone_gives_the_same_pixels(micro_batch) -> None:
    model = pipeline()
    pixels = decode_in_batches(model, latents(), micro_batch=micro_batch)
    media = decode_and_score(pipeline(), PromptTimesMean(), latents(), prompts(), micro_batch=3, keep_pixels=True)
    assert media.pixels is not None
    assert torch.equal(pixels, media.pixels)
    assert (pixels.dtype, pixels.requires_grad) == (torch.float32, False)
    assert max(model.decoded) <= micro_batch
    assert sum(model.decoded) == ROWS


@dataclass
class Apart:
    """How far a sample is from the mean of its prompt's others: wrong if the prompt is not whole."""

    name: str = "apart"
    differentiable: bool = False
    groupwise: bool = True
    calls: list[list[str]] = field(default_factory=list)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        self.calls.append(list(prompts))
        values = media.flatten(1).mean(dim=1)
        means = {prompt: values[[other == prompt for other in prompts]].mean() for prompt in set(prompts)}
        return RewardOutput((values - torch.stack([means[prompt] for prompt in prompts])).float())


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 100])
def test_a_reward_that_compares_samples_is_given_whole_prompts(micro_batch) -> None:
    of_prompt = ["b", "a", "b", "c", "a", "b", "c"]
    model, reward = pipeline(), Apart()
    media = decode_and_score(model, reward, latents(), of_prompt, micro_batch=micro_batch, keep_pixels=True)
    values = torch.sigmoid(latents() * 0.1).double().flatten(1).mean(dim=1)
    for prompt in "abc":
        rows = [row for row, text in enumerate(of_prompt) if text == prompt]
        torch.testing.assert_close(media.scores[rows], (values[rows] - values[rows].mean()).float())
        assert sum(prompt in call for call in reward.calls) == 1
    assert media.pixels is not None
    torch.testing.assert_close(media.pixels, torch.sigmoid(latents() * 0.1))
    assert max(model.decoded) <= micro_batch


@pytest.mark.parametrize("whole", [True, False])
def test_every_sample_is_judged_by_what_stands_beside_its_own_prompt(whole) -> None:
    @dataclass
    class Told(Apart):
        groupwise: bool = whole

        def score(
            self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
        ) -> RewardOutput:
            assert metadata is not None
            return RewardOutput(torch.tensor([float(str(entry["n"])) for entry in metadata]))

    beside = [{"n": row} for row in range(ROWS)]
    media = decode_and_score(pipeline(), Told(), latents(), list("babcabc"), micro_batch=2, metadata=beside)
    assert media.scores.tolist() == [float(row) for row in range(ROWS)]
