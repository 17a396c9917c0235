"""The verifier as a reward: exactly the embedded verifier, mixed as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from difalign.core.protocols import RewardModel
from difalign.embedded.render import render
from difalign.embedded.scenes import SIZE, Placed, Thing
from difalign.embedded.verifier import verify
from difalign.reward_models.verifier import VerifierReward

CENTRE, LEFT, RIGHT = SIZE / 2, SIZE / 6, SIZE * 5 / 6
RED, BLUE = Thing("red", "circle"), Thing("blue", "square")
SCENES = (
    (Placed(RED, CENTRE, CENTRE, 4.5),),
    (Placed(RED, CENTRE, CENTRE, 4.5),),
    (Placed(RED, LEFT, CENTRE, 4.5), Placed(BLUE, RIGHT, CENTRE, 4.5)),
    (Placed(RED, LEFT, CENTRE, 4.5), Placed(BLUE, RIGHT, CENTRE, 4.5)),
    (),
)
CAPTIONS = (
    "a red circle",  # right
    "a red square",  # the shape is wrong
    "a red circle left of a blue square",  # right
    "a red circle above a blue square",  # the relation is wrong
    "three blue squares",  # nothing there
)


def pictures() -> torch.Tensor:
    return torch.from_numpy(render(SCENES).astype(np.float32))


def test_scenes_tell_strict_from_partial() -> None:
    """What the other tests rest on: right, half right and wrong pictures are among them."""
    truth = verify(pictures().numpy(), CAPTIONS)
    assert truth.strict.tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert truth.partial[[0, 2]].tolist() == [1.0, 1.0]
    assert 0.0 < truth.partial[1] < 1.0
    assert 0.0 < truth.partial[3] < 1.0
    assert truth.partial[4] == 0.0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_mixes_strict_and_partial_exactly(share) -> None:
    output = VerifierReward(strict_share=share).score(pictures(), CAPTIONS)
    truth = verify(pictures().numpy(), CAPTIONS)
    mixed = np.float32(share) * truth.strict + np.float32(1.0 - share) * truth.partial
    assert output.scores.dtype == torch.float32
    assert output.scores.tolist() == mixed.tolist()
    assert {name: part.tolist() for name, part in output.components.items()} == {
        "strict": truth.strict.tolist(),
        "partial": truth.partial.tolist(),
    }


def test_ends_of_the_mixture_are_the_components_themselves() -> None:
    strict = VerifierReward(strict_share=1.0).score(pictures(), CAPTIONS)
    partial = VerifierReward(strict_share=0.0).score(pictures(), CAPTIONS)
    assert torch.equal(strict.scores, strict.components["strict"])
    assert torch.equal(partial.scores, partial.components["partial"])
    assert not torch.equal(strict.scores, partial.scores)


def test_stays_in_the_unit_interval_on_anything() -> None:
    source = torch.Generator().manual_seed(0)
    noise = torch.rand(len(CAPTIONS), 3, SIZE, SIZE, generator=source)
    for media in (noise, torch.zeros_like(noise), torch.ones_like(noise), pictures().flip(0)):
        scores = VerifierReward().score(media, CAPTIONS).scores
        assert bool(((scores >= 0.0) & (scores <= 1.0)).all())


def test_rows_do_not_depend_on_their_batch() -> None:
    reward = VerifierReward()
    whole = reward.score(pictures(), CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        alone = reward.score(pictures()[row : row + 1], [caption])
        assert alone.scores.tolist() == whole.scores[row : row + 1].tolist()
        assert alone.components["partial"].tolist() == whole.components["partial"][row : row + 1].tolist()


def test_pixels_that_carry_gradient_are_scored_only_where_none_is_asked_for() -> None:
    media = pictures().requires_grad_()
    with pytest.raises(ValueError, match=r"verifier has no gradient to the pixels; detach them"):
        VerifierReward().score(media, CAPTIONS)
    with torch.no_grad():
        output = VerifierReward().score(media, CAPTIONS)
    assert not output.scores.requires_grad
    assert torch.equal(output.scores, VerifierReward().score(pictures(), CAPTIONS).scores)


def test_half_precision_pixels_are_judged_alike() -> None:
    half = VerifierReward().score(pictures().to(torch.bfloat16), CAPTIONS)
    assert half.scores.dtype == torch.float32
    assert half.components["strict"].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_noise_level_is_accepted_and_not_used() -> None:
    reward = VerifierReward()
    scores = [reward.score(pictures(), CAPTIONS, sigma=sigma).scores for sigma in (None, 0.0, 0.7)]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


def test_is_a_reward_without_gradient() -> None:
    reward = VerifierReward()
    assert isinstance(reward, RewardModel)
    assert (reward.name, reward.differentiable, reward.strict_share) == ("verifier", False, 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), float("inf")])
def test_refuses_a_share_that_is_none(share) -> None:
    with pytest.raises(ValueError, match=rf"strict_share is {share}; give a share between 0 and 1"):
        VerifierReward(strict_share=share)


def test_refuses_what_it_cannot_read() -> None:
    reward = VerifierReward()
    with pytest.raises(ValueError, match=r"'a photo of a dog' is not in the scene grammar; say for instance"):
        reward.score(pictures()[:1], ["a photo of a dog"])
    with pytest.raises(ValueError, match=r"5 images but 2 captions; give one caption an image"):
        reward.score(pictures(), CAPTIONS[:2])
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\] in \[0, 1\], got an array of shape \(5, 1, 36, 36\)"):
        reward.score(torch.zeros(5, 1, 36, 36), CAPTIONS)
