"""A search leaves a folder that can be trusted: complete, resumable, the same however the work is cut."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from difalign import api
from difalign.build import search_files, search_run, search_task
from difalign.build.search_preflight import prepare_search
from difalign.build.search_task import build_search
from difalign.core.errors import ConfigError
from difalign.core.types import Metadata, RewardOutput
from difalign.report.search_records import read_results, read_run_record, read_scores
from difalign.reward_models.verifier import VerifierReward
from tests.build.small_search import PROMPTS, found, order_of, searched, settings


@pytest.fixture(scope="module", autouse=True)
def _loaded_once() -> Iterator[None]:
    """One pipeline and one measurement for all searches of this file."""
    with pytest.MonkeyPatch.context() as patch:
        kept: dict[str, object] = {}
        for name in ("build_pipeline", "_measured"):
            real = getattr(search_task, name)

            def once(*arguments, name=name, real=real, **named):
                if name not in kept:
                    kept[name] = real(*arguments, **named)
                return kept[name]

            patch.setattr(search_task, name, once)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "out"
    searched(out, save="all")
    return out


def test_everything_that_is_named_is_there(whole: Path):
    run, lines = read_run_record(whole), read_results(whole)
    assert [line.prompt for line in lines] == list(PROMPTS)
    assert (run.totals.prompts, run.totals.done, run.failures) == (3, 3, ())
    assert not (whole / ".unfinished").exists()
    assert (whole / "report.html").is_file()
    for line in lines:
        assert line.folder is not None
        scores = read_scores(whole / line.folder)  # refuses files that do not exist
        assert scores.winner == line.winner
        assert len(scores.candidates) == 4
        assert (whole / line.folder / "grid.png").is_file()


def test_the_plan_is_what_was_counted(whole: Path):
    run = read_run_record(whole)
    assert run.plan is not None
    plan, total = run.plan.cost, run.totals.cost
    assert (run.plan.candidates, run.plan.finished, plan.nfe) == (4, 2, 4 * 2 + 2 * 2)
    assert (plan.decodes, plan.scores, plan.previews) == (6, 6, 4)
    counted = (total.nfe, total.decodes, total.scores, total.previews)
    assert counted == tuple(3 * value for value in (plan.nfe, plan.decodes, plan.scores, plan.previews))
    assert plan.tflops is not None
    assert total.tflops == pytest.approx(3 * plan.tflops)
    assert run.prices["tflops"].nfe > 0


def test_scoring_the_saved_winner_again_gives_its_score(whole: Path):
    for line in read_results(whole):
        assert line.winner is not None
        with Image.open(whole / str(line.folder) / "winner.png") as picture:
            text = dict(picture.text)  # type: ignore[attr-defined]  # of PNG pictures
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        assert float(api.score("verifier", pixels, [line.prompt]).scores) == pytest.approx(line.winner.score, abs=0.02)
        said = {"prompt": line.prompt, "seed": str(line.winner.seed), "index": str(line.winner.index)}
        assert said.items() <= text.items()
        assert float(text["score"]) == line.winner.score


def test_the_winner_is_a_sample_of_its_seed(whole: Path):
    line = read_results(whole)[0]
    assert line.winner is not None
    drawn = api.sample("tiny-sd3", line.prompt, samples_per_prompt=4, steps=4, guidance=1.0).pixels[line.winner.index]
    with Image.open(whole / str(line.folder) / "winner.png") as picture:
        saved = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    assert (saved - (drawn * 255).round()).abs().max() <= 1


@pytest.mark.parametrize("cut", [{"micro_batch": 3}, {"prompts_in_flight": 1}, {"prompts_in_flight": 3}])
def test_how_the_work_is_cut_decides_nothing(cut: dict[str, int], whole: Path, tmp_path: Path):
    searched(tmp_path / "out", **cut)
    there, here = found(whole), found(tmp_path / "out")
    assert there.keys() == here.keys()
    for prompt, (key, folder, winner, seeds, looks, nfe) in there.items():
        other = here[prompt]
        assert (key, folder, seeds, nfe) == (other[0], other[1], other[3], other[5])
        assert winner.index == other[2].index
        assert [(step, kept) for step, _, _, kept in looks] == [(step, kept) for step, _, _, kept in other[4]]
        for (_, _, mine, _), (_, _, theirs, _) in zip(looks, other[4], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)


def test_shards_together_are_the_whole(whole: Path, tmp_path: Path):
    parts = {}
    for i in (1, 2):
        searched(tmp_path / str(i), shard=f"{i}/2")
        parts |= found(tmp_path / str(i))
    assert {prompt: entry[2].index for prompt, entry in parts.items()} == {
        prompt: entry[2].index for prompt, entry in found(whole).items()
    }
    assert order_of(tmp_path / "1") == [PROMPTS[0], PROMPTS[2]]
    assert sorted(path.name for path in (tmp_path / "2").glob("p*")) == ["p00001"]


_SCORE = VerifierReward.score


def moody(
    reward: VerifierReward,
    media: Tensor,
    prompts: Sequence[str],
    *,
    metadata: Metadata | None = None,
    sigma: float | None = None,
) -> RewardOutput:
    """Breaks over one prompt, and cannot score another."""
    if PROMPTS[0] in prompts:
        raise KeyError("no such shape")
    answer = _SCORE(reward, media, prompts, metadata=metadata, sigma=sigma)
    blind = torch.tensor([prompt == PROMPTS[1] for prompt in prompts])
    return RewardOutput(answer.scores.masked_fill(blind, torch.nan))


def test_a_prompt_that_fails_is_listed_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(VerifierReward, "score", moody)
    outcome = searched(tmp_path / "out")
    lines = {line.prompt: line for line in read_results(tmp_path / "out")}
    assert "KeyError" in str(lines[PROMPTS[0]].error)
    assert "no finished sample has a score" in str(lines[PROMPTS[1]].error)
    assert lines[PROMPTS[2]].winner is not None
    assert [failure.prompt for failure in outcome.run.failures] == list(PROMPTS[:2])


def test_a_failed_prompt_is_tried_again_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as broken:
        broken.setattr(VerifierReward, "score", moody)
        searched(tmp_path / "out")
    walked = []
    whole = search_files.write_prompt
    monkeypatch.setattr(search_run, "write_prompt", lambda *a, **k: walked.append(a[2].prompt) or whole(*a, **k))
    outcome = searched(tmp_path / "out", resume=True)
    assert walked == list(PROMPTS[:2])
    assert outcome.run.failures == ()
    assert order_of(tmp_path / "out") == list(PROMPTS)


def test_prompts_in_flight_go_on_after_their_last_stage(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed after the look of the second pair: the first is not walked again, the second not up to its look."""
    real = search_files.StateFile.save

    def killed(self, state) -> None:
        real(self, state)
        if len(saved) == 1:
            raise KeyboardInterrupt
        saved.append(1)

    saved: list[int] = []
    with monkeypatch.context() as ending:
        ending.setattr(search_files.StateFile, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "out")
    assert order_of(tmp_path / "out") == list(PROMPTS[:2])
    rows = []
    inputs = prepare_search(settings(tmp_path / "out", resume=True))
    network = build_search(inputs, device=torch.device("cpu"), agree=lambda value: value).pipeline.network
    hook = network.register_forward_pre_hook(
        lambda _module, _arguments, named: rows.append(named["hidden_states"].shape[0]), with_kwargs=True
    )
    searched(tmp_path / "out", resume=True)
    hook.remove()
    assert sum(rows) == 1 + 2 * 2  # one to see what a row costs; two survivors, two steps left
    there, here = found(whole), found(tmp_path / "out")
    assert {prompt: entry[2] for prompt, entry in here.items()} == {prompt: entry[2] for prompt, entry in there.items()}
    assert all(read_scores(tmp_path / "out" / entry[1]).looks[0].sheet for entry in here.values())


def test_another_search_is_not_gone_on_with(whole: Path):
    before = (whole / "results.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        searched(whole, save="all", resume=True, seed=1)
    with pytest.raises(ConfigError, match=r"searched with the budget .*'amount': 4"):
        searched(whole, save="all", resume=True, n=5)
    with pytest.raises(ConfigError, match="is not at that place of the prompts now; add prompts at the end"):
        searched(whole, save="all", resume=True, prompt=PROMPTS[::-1])
    with pytest.raises(ConfigError, match="already holds a search; go on with it by --resume"):
        searched(whole)
    assert (whole / "results.jsonl").read_bytes() == before


def test_a_full_disk_ends_the_run_and_leaves_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, calls = search_run.write_prompt, []

    def write(*arguments, **named):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **named)

    with monkeypatch.context() as full:
        full.setattr(search_run, "write_prompt", write)
        with pytest.raises(ConfigError, match=r"can no longer be written .*make room, then the same"):
            searched(tmp_path / "out")
    assert order_of(tmp_path / "out") == list(PROMPTS[:2])
    searched(tmp_path / "out", resume=True)
    assert order_of(tmp_path / "out") == list(PROMPTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": None, "budget_tflops": 1e-9}, "below one candidate, which costs"),
        ({"stages": "0.7:0.5,0.69:0.5"}, "drop one where two share a step"),
        ({"stages": "1.5:0.5"}, "choose sigma in between or more steps"),
        ({"lora": "LORA"}, "--lora"),
    ],
)
def test_what_only_a_loaded_pipeline_can_tell(changes, said: str, tmp_path: Path):
    if "lora" in changes:
        (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"nothing")
        changes = {"lora": str(tmp_path)}
    inputs = prepare_search(settings(None, dry_run=True, **changes))
    with pytest.raises(ConfigError, match=said):
        build_search(inputs, device=torch.device("cpu"), agree=lambda value: value)


def test_published_accounting_starts_more_and_rounds_halves_to_even():
    def plan(**changes):
        inputs = prepare_search(settings(None, dry_run=True, n=None, budget_nfe=60, stages="0.7:0.25", **changes))
        return build_search(inputs, device=torch.device("cpu"), agree=lambda value: value)

    exact, published = plan(), plan(accounting="published")
    assert published.plan.candidates > exact.plan.candidates
    assert (exact.walk.rounding.__name__, published.method.rounding.__name__) == ("half_up", "half_even")
    assert exact.plan.cost.nfe <= 60 < published.plan.cost.nfe


def test_the_shipped_bank_looks_at_latents_that_nobody_decodes(tmp_path: Path):
    changes = {"prompt": PROMPTS[:1], "reward": None, "stages": None, "steps": 16}
    searched(tmp_path / "out", **changes)
    (line,) = read_results(tmp_path / "out")
    scores = read_scores(tmp_path / "out" / line.folder)
    assert {(look.judge, look.decoded) for look in scores.looks} == {("tiny-noise-aware", False)}
    assert line.cost.decodes == len(scores.finish.index)
    assert line.cost.previews == sum(len(look.index) for look in scores.looks) > 0
    assert all((tmp_path / "out" / line.folder / look.sheet).is_file() for look in scores.looks)
