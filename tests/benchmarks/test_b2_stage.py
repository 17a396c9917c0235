"""The trainer and the three processes that pass files do the same B2-DiffuRL stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bench_b2_stage, epochs, published_stage

SMALLEST = ["--start-noises", "4", "--prompts", "2", "--steps", "6", "--interval", "4", "--children", "3"]
SMALLEST += ["--trajectories", "2", "--loop-batch", "3", "--rounds", "1", "--guidance", "1"]


def assert_same(found: dict[str, object]) -> None:
    assert found["same_trajectories"]
    assert float(str(found["max_reward_difference"])) < 1e-3
    assert float(str(found["max_gradient_difference"])) < 1e-3
    assert int(str(found["updates"])) > 0


def test_sides_do_the_same_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three steps one after the other in this process, through their files."""

    def in_this_process(folder: Path) -> None:
        for step in published_stage.STEPS:
            published_stage.main(step, folder)

    monkeypatch.setattr(bench_b2_stage, "run_stage", in_this_process)
    options = bench_b2_stage.parse(SMALLEST)
    epoch = epochs.prepare_epoch(None, bench_b2_stage.overrides(options, tmp_path))
    job = bench_b2_stage.write_stage(epoch, tmp_path, batch=options.loop_batch)
    assert published_stage.Job.read(tmp_path).prompts == list(job.prompts)
    assert_same(bench_b2_stage.check(epoch, tmp_path, job))
    assert len(list((tmp_path / "pictures").iterdir())) == 4 * 3
    assert (tmp_path / "after").is_dir()


@pytest.mark.slow
@pytest.mark.multiproc
def test_processes_are_timed_apart_from_their_start(capsys: pytest.CaptureFixture[str]) -> None:
    bench_b2_stage.main(SMALLEST)
    results = json.loads(capsys.readouterr().out)["results"]
    assert_same(results)
    assert results["ratio_with_startup"] < results["ratio"]
    assert results["forwards"] == {"ours": 4 * (2 + 1 + 3 * 3), "stage": 4 * (2 + 3 * 4)}
