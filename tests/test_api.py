"""The public functions on a random SD3: samples that depend on nothing but what is asked, and names that are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import difalign
from difalign import api
from difalign.build import run
from difalign.core.errors import ConfigError
from difalign.core.overrides import load_config
from difalign.core.rng import row_seed
from difalign.embedded.render import render
from difalign.embedded.scenes import SIZE, Placed, Thing
from difalign.pipelines.sd3 import SD3Pipeline
from difalign.process.flow import FlowProcess, RenoiseProcess
from difalign.process.rules import FLOW_RULES, STD_RULES
from difalign.reward_models.verifier import VerifierReward
from tests.house.repository import ROOT
from tests.tiny_models import PROMPTS, tiny_sd3
from tests.train.small_runs import Redness, write_random_sd3, write_redness

STEPS = 3  # of the random SD3's card
ROUNDING = {"rtol": 0.0, "atol": 1e-5}  # kernels differ by the size of a batch


@dataclass(frozen=True)
class Cards:
    """The files of a random SD3 and of a reward."""

    pipeline: Path
    reward: Path


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Cards:
    folder = tmp_path_factory.mktemp("cards")
    return Cards(write_random_sd3(folder), write_redness(folder))


@pytest.fixture(scope="module")
def pipeline(cards: Cards) -> SD3Pipeline:
    loaded = api.load_pipeline(cards.pipeline)
    assert isinstance(loaded, SD3Pipeline)
    return loaded


def draw(pipeline: SD3Pipeline, prompts=PROMPTS, *, seed: int = 7, samples_per_prompt: int = 1, micro_batch: int = 16):
    return api.sample(
        pipeline, prompts, seed=seed, samples_per_prompt=samples_per_prompt, steps=STEPS, micro_batch=micro_batch
    )


# --- loading -----------------------------------------------------------------------------------------------------


def test_pipeline_is_what_its_card_says(pipeline: SD3Pipeline) -> None:
    assert pipeline.guidance_scale == 2.0
    assert pipeline.process == FlowProcess(rule=FLOW_RULES["flow_grpo"])
    expected = tiny_sd3().transformer.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in pipeline.network.state_dict().items())


def test_arguments_come_before_the_card(cards: Cards) -> None:
    loaded = api.load_pipeline(str(cards.pipeline), guidance=3.5, rule="cps")
    assert isinstance(loaded, SD3Pipeline)
    assert loaded.guidance_scale == 3.5
    assert loaded.process == RenoiseProcess(std_rule=STD_RULES["cps"])


def test_diffusers_folder_needs_no_card(cards: Cards, pipeline: SD3Pipeline) -> None:
    loaded = api.load_pipeline(cards.pipeline.parent / "weights", guidance=2.0)
    assert isinstance(loaded, SD3Pipeline)
    state = pipeline.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.network.state_dict().items())


def test_shipped_names_load_and_draw() -> None:
    loaded = api.load_pipeline("tiny-sd3")
    samples = api.sample(loaded, "a red circle", steps=1, rewards="verifier")
    assert samples.scores is not None
    assert 0.0 <= float(samples.scores) <= 1.0
    assert set(samples.components) == {"strict", "partial"}


def test_reward_is_what_its_card_and_options_say(cards: Cards) -> None:
    assert api.load_reward("verifier") == VerifierReward(strict_share=0.5)
    assert api.load_reward("verifier", options={"strict_share": 1.0}) == VerifierReward(strict_share=1.0)
    assert api.load_reward(cards.reward, options={"scale": 2}) == Redness(scale=2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: api.load_pipeline("tiny-sd4"), r"'tiny-sd4' is unknown; did you mean 'tiny-sd3'\? known: .*tiny-sd3"),
        (lambda: api.sample("nothing", ["a red circle"]), r"'nothing' is unknown; known: .*sd35-medium, .*tiny-sd3"),
        (lambda: api.load_pipeline("no/such/folder"), r"no such file; give an existing path, or one of: .*tiny-sd3"),
        (lambda: api.load_reward("verifer"), r"'verifer' is unknown; did you mean 'verifier'\? known: .*verifier"),
        (lambda: api.score("taste", torch.zeros(1, 3, 36, 36), ["a"]), r"'taste' is unknown; .*known: .*verifier"),
        (lambda: api.load_reward("verifier", options={"share": 1.0}), r"options\.share: unknown option.*strict_share"),
        (lambda: api.load_reward("verifier", options={"strict_share": 2.0}), r"reward 'verifier': strict_share is 2"),
        (lambda: api.train("dem"), r"'dem' is unknown; did you mean 'demo'\? known: .*demo"),
        (lambda: api.train(overrides=["sampling.stepz=4"]), r"sampling\.stepz: unknown key; did you mean"),
        (lambda: api.train(overrides=["rewards.total.card=verifier"]), r"rewards\.total: .* rewards\.mine\.card=veri"),
    ],
)
def test_unknown_names_list_the_known_ones(call, said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        call()
    assert not list(tmp_path.iterdir())


def test_public_names_are_those_of_the_module() -> None:
    assert difalign.align is api.train
    for name in ("load_pipeline", "load_reward", "sample", "score"):
        assert getattr(difalign, name) is getattr(api, name)


# --- sampling ----------------------------------------------------------------------------------------------------


def test_samples_are_those_of_plain_diffusers(pipeline: SD3Pipeline) -> None:
    """Noise-free, from the seeds of their rows: bit for bit if diffusers encodes one text at a time too."""
    plain = tiny_sd3()
    for text in PROMPTS[:2]:
        samples = draw(pipeline, text, samples_per_prompt=2)
        with torch.no_grad():
            expected = plain(
                text,
                num_images_per_prompt=2,
                num_inference_steps=STEPS,
                guidance_scale=2.0,
                generator=[torch.Generator().manual_seed(row_seed(7, text, s, 0)) for s in range(2)],
                output_type="pt",
                max_sequence_length=0,
            ).images
        assert torch.equal(samples.pixels, expected)


def test_result_stands_in_the_order_asked(pipeline: SD3Pipeline) -> None:
    samples = draw(pipeline, samples_per_prompt=3)
    rows = 3 * len(PROMPTS)
    assert samples.prompts == tuple(text for text in PROMPTS for _ in range(3))
    assert len(samples.images) == samples.pixels.shape[0] == rows
    assert samples.forwards == rows * STEPS
    assert samples.scores is None
    assert samples.components == {}
    one = draw(pipeline, PROMPTS[1], samples_per_prompt=3)
    assert one.prompts == (PROMPTS[1],) * 3
    torch.testing.assert_close(one.pixels, samples.pixels[3:6], **ROUNDING)


def test_images_are_the_pixels_rounded_to_bytes(pipeline: SD3Pipeline) -> None:
    samples = draw(pipeline)
    assert float(samples.pixels.min()) >= 0.0
    assert float(samples.pixels.max()) <= 1.0
    assert (samples.pixels.dtype, samples.pixels.device.type, samples.pixels.requires_grad) == (
        torch.float32,
        "cpu",
        False,
    )
    for image, pixels in zip(samples.images, samples.pixels, strict=True):
        assert (image.mode, image.size) == ("RGB", (pixels.shape[2], pixels.shape[1]))
        bytes_ = np.asarray(image).transpose(2, 0, 1)
        assert np.abs(bytes_ / 255.0 - pixels.numpy()).max() <= 0.5 / 255 + 1e-6


def test_the_seed_alone_decides(pipeline: SD3Pipeline) -> None:
    torch.manual_seed(1)
    first = draw(pipeline)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(draw(pipeline).pixels, first.pixels)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.allclose(draw(pipeline, seed=8).pixels, first.pixels, atol=1e-2)


def test_samples_of_a_prompt_differ(pipeline: SD3Pipeline) -> None:
    first, second = draw(pipeline, PROMPTS[0], samples_per_prompt=2).pixels
    assert not torch.allclose(first, second, atol=1e-2)


def test_company_order_and_batches_change_nothing(pipeline: SD3Pipeline) -> None:
    together = draw(pipeline)
    torch.testing.assert_close(draw(pipeline, PROMPTS[::-1]).pixels.flip(0), together.pixels, **ROUNDING)
    torch.testing.assert_close(draw(pipeline, [PROMPTS[2]]).pixels, together.pixels[2:3], **ROUNDING)
    for micro_batch in (1, 3):
        torch.testing.assert_close(draw(pipeline, micro_batch=micro_batch).pixels, together.pixels, **ROUNDING)


def test_noise_rule_does_not_matter_without_noise(cards: Cards, pipeline: SD3Pipeline) -> None:
    other = api.load_pipeline(cards.pipeline, rule="wan")
    assert torch.equal(api.sample(other, PROMPTS, seed=7, steps=STEPS).pixels, draw(pipeline).pixels)


def test_name_brings_the_steps_and_guidance_of_its_card(cards: Cards, pipeline: SD3Pipeline) -> None:
    by_path = api.sample(cards.pipeline, PROMPTS[:2], seed=7)
    assert by_path.forwards == 2 * STEPS
    assert torch.equal(by_path.pixels, draw(pipeline, PROMPTS[:2]).pixels)


def test_guidance_of_a_call_leaves_the_pipeline_as_it_was(pipeline: SD3Pipeline, cards: Cards) -> None:
    guided = api.sample(pipeline, PROMPTS[:2], seed=7, steps=STEPS, guidance=5.0)
    assert pipeline.guidance_scale == 2.0
    assert torch.equal(guided.pixels, api.sample(cards.pipeline, PROMPTS[:2], seed=7, guidance=5.0).pixels)
    assert not torch.allclose(guided.pixels, draw(pipeline, PROMPTS[:2]).pixels, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompts": []}, r"got 0 prompts and samples_per_prompt=1; both must be at least 1"),
        ({"samples_per_prompt": 0}, r"got 1 prompts and samples_per_prompt=0"),
        ({"steps": 0}, r"num_steps must be.*got 0"),
        ({"micro_batch": 0}, r"micro_batch must be at least 1, got 0"),
        ({"guidance": -1.0}, r"guidance_scale must be .*got -1\.0"),
    ],
)
def test_numbers_out_of_range_are_refused(pipeline: SD3Pipeline, arguments, said) -> None:
    with pytest.raises(ValueError, match=said):
        api.sample(pipeline, **{"prompts": ["a red circle"], **arguments})


# --- scoring -----------------------------------------------------------------------------------------------------


def test_samples_are_scored_as_score_does(pipeline: SD3Pipeline, cards: Cards) -> None:
    reward = Redness(scale=2.0)
    samples = api.sample(pipeline, PROMPTS, seed=7, steps=STEPS, samples_per_prompt=2, rewards=reward)
    assert samples.scores is not None
    assert samples.scores.shape == (2 * len(PROMPTS),)
    expected = 2.0 * (samples.pixels[:, 0] - samples.pixels[:, 1]).mean(dim=(1, 2))
    torch.testing.assert_close(samples.scores, expected)
    torch.testing.assert_close(samples.components["red"], samples.pixels[:, 0].mean(dim=(1, 2)))
    again = api.score(str(cards.reward), samples.pixels, samples.prompts)
    torch.testing.assert_close(2.0 * again.scores, samples.scores)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pictures_are_scored_as_their_pixels(mode) -> None:
    bytes_ = np.random.default_rng(0).integers(0, 256, size=(2, 5, 7, 3), dtype=np.uint8)  # not square
    seen = []

    @dataclass(frozen=True)
    class Watching(Redness):
        def score(self, media, prompts, *, metadata=None, sigma=None):
            seen.append(media)
            return super().score(media, prompts, metadata=metadata, sigma=sigma)

    pictures = [Image.fromarray(array).convert(mode) for array in bytes_]
    output = api.score(Watching(), pictures, ["a", "b"])
    pixels = torch.from_numpy(bytes_.astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen[0], pixels)
    torch.testing.assert_close(output.scores, Redness().score(pixels, ["a", "b"]).scores)


def test_verifier_by_name_reads_rendered_scenes() -> None:
    circle = render([[Placed(Thing("red", "circle"), SIZE / 2, SIZE / 2, 4.5)]])
    pixels = torch.from_numpy(np.repeat(circle, 2, axis=0).astype(np.float32))
    scores = api.score("verifier", pixels, ["a red circle", "two blue squares"]).scores
    assert float(scores[0]) == 1.0
    assert float(scores[1]) < 0.5


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 images but 1 prompts; give one prompt an image"):
        api.score(Redness(), torch.zeros(2, 3, 4, 4), ["a"])


def test_prompt_outside_the_grammar_is_refused_by_the_reward(pipeline: SD3Pipeline) -> None:
    with pytest.raises(ValueError, match="not in the scene grammar"):
        api.sample(pipeline, ["a photo of a dog"], steps=1, rewards="verifier")


def test_default_configuration_is_the_shipped_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr(run, "run_flow_grpo", lambda inputs: seen.append(inputs.config) or {"gain": 1.0})
    assert api.train(overrides=[f"output_dir={tmp_path}/run"]) == {"gain": 1.0}
    assert seen == [load_config(ROOT / "configs" / "demo.yaml", [f"output_dir={tmp_path}/run"])]
