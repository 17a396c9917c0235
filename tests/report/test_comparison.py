from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difalign.report.comparison import pairs_over_kinds, sample_pairs, write_before_after
from difalign.report.images import read_tiles
from difalign.report.run_folder import read_run
from tests.report.fake_run import KINDS, FakeRun


def test_pairs_are_of_the_same_prompt_and_noise(fake_run: FakeRun) -> None:
    run = read_run(fake_run(rollouts=1))
    assert run.base is not None
    assert run.latest is not None
    assert run.latest.grid is not None
    pairs = sample_pairs(run.base, run.latest)
    assert len(pairs) == 20
    after = read_tiles(run.latest.grid)
    for pair in pairs:
        assert pair.before_record.key == pair.after_record.key
        assert (np.asarray(pair.after) == np.asarray(after[pair.after_record.key])).all()
    assert [pair.after_record.kind for pair in pairs_over_kinds(pairs, limit=5)] == list(KINDS)


def test_the_picture_is_written_and_a_run_without_pairs_is_refused(fake_run: FakeRun, tmp_path: Path) -> None:
    path = write_before_after(fake_run(rollouts=1), limit=8, columns=2)
    with Image.open(path) as picture:
        assert picture.width > 2 * 2 * 128
        assert picture.height > 4 * 128
    with pytest.raises(ValueError, match="no samples of two evaluations"):
        write_before_after(fake_run("other", evaluations=(0,), finished=False))
