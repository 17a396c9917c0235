"""A whole small distillation of the toy, to be run in a child that may be killed: its folder is the argument."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from difalign.objective.distillation import DistillationLoss
from difalign.train.distill_evaluation import Judge, score_levels
from difalign.train.distill_reward import DistillationSettings, distill
from difalign.train.estimate_generation import generate, label
from difalign.train.estimate_store import open_store, read_all_labels, sweep
from tests.train.distil_toys import TEACHER, Solo, levels, pipeline, pixels, plan, silent, table, teacher, walk
from tests.train.killable_worker import Kill, lie_in_wait


def whole(folder: Path) -> None:
    """All stages, each of which goes on where it was cut short."""
    sweep(folder)
    store = open_store(folder / "train", plan(), levels=levels())
    generate(pipeline(), store, walk(), team=Solo(), progress=silent)
    label(teacher(), store, teacher=TEACHER, pixels=pixels, micro_batch=3, team=Solo(), progress=silent)
    read = table(store, read_all_labels(store, teacher=TEACHER))
    settings = DistillationSettings(
        curriculum=tuple(sorted(levels().values())), learning_rate=1e-2, batch_size=4, loss=DistillationLoss()
    )
    distill(teacher(), read, settings=settings, folder=folder / "bank", resume=True)
    judge = Judge("teacher", teacher, read.media, settings.curriculum, store.mark)
    score_levels(
        [judge], folder / "scores", prompts=read.prompts, micro_batch=8, team=Solo(), progress=lambda *at: None
    )


def main() -> None:
    """Read jobs from standard input, fork a child for each, and answer with its exit status."""
    torch.set_num_threads(1)
    whole(Path(sys.argv[1]) / "warm")  # the optimiser imports half of torch
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(f"{_in_child(json.loads(line))}\n")
        sys.stdout.flush()


def _in_child(message: dict) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        if message["kill"] is not None:
            lie_in_wait(Kill(**message["kill"]))
        whole(Path(message["folder"]))
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
