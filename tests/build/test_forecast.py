"""What is counted before a run equals what the run then counts, for every plan, on one process and on several."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from difalign.build.cards import load_pipeline_card
from difalign.build.forecast import ProcessForecast, RunForecast, as_mapping, forecast_process, forecast_run
from difalign.build.latents import latent_shape
from difalign.build.plans import build_plans
from difalign.build.preflight import prepare
from difalign.build.run import run_flow_grpo
from difalign.core.config import RunConfig
from difalign.core.types import Plan, Trajectories
from difalign.pipelines.sd3 import SD3Pipeline
from difalign.rollout.engine import rollout
from difalign.train import collector
from difalign.train.runtime import Runtime
from tests.train.small_runs import HELDOUT, run_toy, toy_run_config, write_random_sd3, write_redness
from tests.train.toy_run import DIMENSIONS, TrainableToy, quiet, toy_config, toy_trainer

PLANS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "plain"},
    "window": {"kind": "window", "size": 2, "low": 0, "high": 4},
    "moving window": {"kind": "window", "size": 2, "low": 1, "high": 4, "strategy": "progressive", "shift_every": 1},
    "branch": {"kind": "branch", "mode": "early_k", "k": 3, "children": 3},
    "sampled branch": {"kind": "branch", "mode": "sampled_k", "k": 2, "children": 2},
    "split": {"kind": "split", "at": 2, "children": 4},
    "trained prefix": {"kind": "split", "at": 2, "children": 2, "train_prefix": True},
    "cascade": {"kind": "cascade", "at": [0, 2], "children": 2, "last_step_noise": False},
}


def forecasts(config: RunConfig, latent: tuple[int, ...], processes: int = 1) -> tuple[RunForecast, ProcessForecast]:
    def plans(index: int) -> tuple[Plan, ...]:
        return build_plans(config, rollout=index)

    of_run = forecast_run(config, plans, heldout=len(HELDOUT))
    return of_run, forecast_process(config, plans, processes=processes, latent_shape=latent)


@dataclass
class Watched:
    """What the trainer asked of the engine, the network, the decoder and the reward; one entry a rollout."""

    stored: list[int] = field(default_factory=list)  # bytes
    edges: list[int] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)  # of the network, while sampling
    decodes: list[int] = field(default_factory=list)  # calls of the decoder
    updates: list[int] = field(default_factory=list)  # calls of the network, one entry an update


@dataclass
class PartOf:
    """A runtime that takes itself for the first of several processes; what it gathers is its own."""

    inner: Any
    rank: int
    world: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def watch(config: RunConfig, monkeypatch: pytest.MonkeyPatch, *, world: int = 1) -> tuple[Watched, Any, list[Any]]:
    """Run all rollouts of a toy and count what happens, independently of the trainer's own counters."""
    seen = Watched()
    trainer, pipeline = toy_trainer(config, runtime=PartOf(Runtime(), 0, world))
    decoded: list[int] = []
    monkeypatch.setattr(TrainableToy, "decode", lambda self, latents: decoded.append(1) or latents)

    def engine(*arguments: Any, **options: Any) -> Trajectories:
        before = len(pipeline.batches)
        walks = rollout(*arguments, **options)
        seen.calls[-1] += len(pipeline.batches) - before
        seen.rows[-1] += sum(pipeline.batches[before:])
        kept = (walks.x, walks.x_next, walks.final, *(() if walks.mean is None else (walks.mean,)))
        seen.stored[-1] += sum(t.numel() * t.element_size() for t in kept)
        seen.edges[-1] += walks.x.shape[0]
        seen.leaves[-1] += walks.final.shape[0]
        return walks

    monkeypatch.setattr(collector, "rollout", engine)
    rows = []
    for index in range(config.training.rollouts):
        for counts in (seen.calls, seen.rows, seen.stored, seen.edges, seen.leaves):
            counts.append(0)
        before, decoded_before = len(pipeline.batches), len(decoded)
        new = trainer.run(index, quiet)
        seen.decodes.append(len(decoded) - decoded_before)
        seen.updates.append((len(pipeline.batches) - before - seen.calls[-1]) // len(new))
        rows += new
    return seen, trainer, rows


def small(plan: dict[str, Any], **sampling: Any) -> RunConfig:
    return toy_config(
        sampling={"plan": plan, "prompts_per_update": 3, "samples_per_prompt": 4, "micro_batch": 7, **sampling},
        objective={"filter_zero_variance": False},
        training={"updates_per_rollout": 2, "inner_epochs": 2, "rollouts": 4, "micro_batch": 5},
    )


@pytest.mark.parametrize("name", PLANS)
def test_totals_are_those_that_the_trainer_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(PLANS[name])
    seen, trainer, rows = watch(config, monkeypatch)
    run, process = forecasts(config, (DIMENSIONS,))
    assert run.sampling_forwards == trainer.forwards == sum(seen.rows)
    assert run.samples == run.reward_calls == trainer.reward_calls == sum(seen.leaves)
    assert run.recorded_edges == sum(seen.edges)
    assert run.training_rows == sum(row["rows"] for row in rows)
    assert run.updates == trainer.updates == len(rows)
    dearest = max(range(len(seen.rows)), key=lambda index: (seen.rows[index], seen.edges[index]))
    assert process.sampling_forwards == seen.rows[dearest]
    assert process.recorded_edges == seen.edges[dearest]
    assert process.samples == seen.leaves[dearest]
    assert process.stored_bytes == seen.stored[dearest]
    assert process.sampling_batches == seen.calls[dearest]
    assert process.scoring_batches == seen.decodes[dearest]
    assert process.training_batches == seen.updates[dearest]


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_a_normalised_ratio_stores_the_means_too(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = small(PLANS["plain"], storage_dtype=storage).model_dump()
    sections["objective"] |= {"ratio": "ratio_norm", "clip_range": 0.5}
    config = RunConfig.model_validate(sections)
    seen, _, _ = watch(config, monkeypatch)
    assert forecasts(config, (DIMENSIONS,))[1].stored_bytes == seen.stored[0]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", ["plain", "branch"])
def test_shares_of_several_processes(name: str, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(PLANS[name], prompts_per_update=5, storage_dtype="bfloat16")
    seen, _, _ = watch(config, monkeypatch, world=world)
    _, process = forecasts(config, (DIMENSIONS,), world)
    assert process.prompts_per_update == {2: 3, 3: 2}[world]
    assert process.busy == pytest.approx(5 / 6)
    assert process.sampling_forwards == seen.rows[0]
    assert process.stored_bytes == seen.stored[0]
    assert process.sampling_batches == seen.calls[0]
    assert process.scoring_batches == seen.decodes[0]
    assert process.training_batches == seen.updates[0]


def test_totals_do_not_depend_on_the_processes_that_share_them() -> None:
    config = small(PLANS["plain"], prompts_per_update=6)
    one, six = (forecasts(config, (DIMENSIONS,), world)[1] for world in (1, 6))
    assert one.samples == 6 * six.samples
    assert six.busy == 1.0
    with pytest.raises(ValueError, match=r"7 processes cannot share 6 prompts.*use 1 to 6 processes"):
        forecasts(config, (DIMENSIONS,), 7)


def test_a_latent_of_unknown_size_is_not_guessed() -> None:
    config = small(PLANS["plain"])
    plans = build_plans(config, rollout=0)
    process = forecast_process(config, lambda index: plans, processes=1, latent_shape=None)
    assert process.stored_bytes is None
    assert as_mapping(process)["stored_bytes"] is None


def test_groups_of_a_tree() -> None:
    config = small(PLANS["split"])
    assert forecasts(config, (DIMENSIONS,))[0].group_size == 16  # four start noises, four children


@pytest.mark.parametrize("every", [0, 1, 2])
def test_a_run_ends_with_the_forecast_counts(tmp_path: Path, every: int) -> None:
    config = toy_run_config(
        tmp_path,
        evaluation={"every": every, "limit": 3},
        training={"rollouts": 4, "updates_per_rollout": 2, "ema": {"enabled": False}},
    )
    summary = run_toy(config)
    run, _ = forecasts(config, (3, 4, 4))
    assert run.sampling_forwards == summary["denoiser_forwards"]
    assert run.evaluation_forwards == summary["evaluation_forwards"]
    assert run.reward_calls == summary["reward_calls"]
    assert run.updates == summary["updates"]
    assert run.evaluations == len(list((tmp_path / "evaluations").glob("*.json")))


# --- a random SD3 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    write_random_sd3(folder)
    write_redness(folder)
    (folder / "train.txt").write_text("a red circle\ntwo blue squares\na green cross\n")
    (folder / "heldout.txt").write_text("a red square\na blue circle\n")
    return folder


def sd3_config(folder: Path, output: Path, plan: dict[str, Any], guidance: float) -> RunConfig:
    return RunConfig.model_validate(
        {
            "pipeline": str(folder / "random_sd3.yaml"),
            "output_dir": str(output),
            "rewards": {"redness": {"card": str(folder / "redness.yaml")}},
            "prompts": {"train": str(folder / "train.txt"), "heldout": str(folder / "heldout.txt")},
            "sampling": {
                "steps": 5,
                "guidance": guidance,
                "plan": plan,
                "prompts_per_update": 3,
                "samples_per_prompt": 2,
                "micro_batch": 16,
            },
            "objective": {"filter_zero_variance": False, "kl": {"kind": "velocity"}},
            "training": {
                "lora": {"rank": 2, "alpha": 2},
                "rollouts": 1,
                "updates_per_rollout": 1,
                "micro_batch": 16,
                "ema": {"enabled": False},
                "auto_micro_batch": False,  # whose dry pass is no part of a plan
            },
            "evaluation": {"steps": 3, "guidance": 2.0, "seeds_per_prompt": 1, "bootstrap_samples": 100},
            "guards": {"reload": False},  # likewise, and its pictures depend on how the run goes
        }
    )


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", ["plain", "window", "branch", "split", "cascade"])
def test_an_sd3_computes_as_many_rows_as_forecast(
    name: str, guidance: float, sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sd3_config(sd3, tmp_path / "run", PLANS[name], guidance)
    computed, decoded = [], []
    velocity, decode = SD3Pipeline._velocity, SD3Pipeline.decode

    def counted_velocity(self: SD3Pipeline, x: Tensor, *rest: Tensor) -> Tensor:
        computed.append(x.shape[0])
        return velocity(self, x, *rest)

    def counted_decode(self: SD3Pipeline, latents: Tensor) -> Tensor:
        decoded.append(latents.shape[0])
        assert tuple(latents.shape[1:]) == shape
        return decode(self, latents)

    shape = latent_shape(load_pipeline_card(config.pipeline))
    assert shape == (4, 8, 8)
    monkeypatch.setattr(SD3Pipeline, "_velocity", counted_velocity)
    monkeypatch.setattr(SD3Pipeline, "decode", counted_decode)
    inputs = prepare(config)
    summary = run_flow_grpo(inputs)
    run = forecast_run(config, lambda index: build_plans(config, rollout=index), heldout=2)
    assert run.sampling_forwards == summary["denoiser_forwards"]
    rows = run.training_rows + run.reference_rows + run.diagnostic_rows
    trained = rows * (2 if guidance > 1 else 1)
    assert run.sampling_network_rows + run.evaluation_network_rows + trained == sum(computed)
    assert run.decodes == sum(decoded)
    assert run.diagnostic_rows == run.training_rows  # the one rollout is looked at, and has one update
    assert run.reference_rows == 2 * run.training_rows
    assert run.evaluation_network_rows == 2 * run.evaluation_forwards == 2 * summary["evaluation_forwards"]
