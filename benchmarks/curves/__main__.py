"""Learning curves of all methods on the shipped tiny pipelines: train, tune, draw.

    python -m benchmarks.curves run --pipeline tiny-sd3 --seeds 0 1 2 --jobs 2
    python -m benchmarks.curves tune --pipeline tiny-sd3 --methods tempflow --vary training.learning_rate 1e-4 3e-4
    python -m benchmarks.curves draw

``run`` appends a line an evaluation to ``results/PIPELINE.jsonl`` and passes over runs that are complete there;
``tune`` appends a line a trial to ``results/tuning.jsonl`` and ranks the trials by the reward on training prompts;
``draw`` makes the pictures and the table of what the lines say.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.curves.jobs import run_jobs
from benchmarks.curves.methods import FAMILIES, Family
from benchmarks.curves.rows import newest_complete, read_lines, runs_of
from benchmarks.curves.training import CLOCKS, Job, settings_digest
from benchmarks.curves.tuning import ranking
from difalign.report.environment import portable_argument

RESULTS = Path(__file__).parent / "results"
TUNING_SEED = 100  # no seed of a curve


def curve_jobs(options: argparse.Namespace, family: Family, command: str) -> list[Job]:
    """The runs that are still to be made."""
    file = options.results / f"{family.pipeline}.jsonl"
    done = {
        (run.method, run.seed, run.settings)
        for runs in newest_complete(runs_of(read_lines(file))).values()
        for run in runs.values()
    }
    jobs = (
        Job(
            pipeline=family.pipeline,
            method=name,
            seed=seed,
            budget=options.budget or family.seconds,
            points=options.points,
            output=str(file),
            clock=options.clock,
            command=command,
        )
        for seed, name in itertools.product(options.seeds, _names(options, family))
    )
    return [job for job in jobs if (job.method, job.seed, settings_digest(job)) not in done]


def tuning_jobs(options: argparse.Namespace, family: Family, command: str) -> list[Job]:
    """Every method with every combination of the varied values."""
    fixed = dict(_pair(text) for text in options.set)
    choices = itertools.product(*([(key, value) for value in values] for key, *values in options.vary))
    return [
        Job(
            pipeline=family.pipeline,
            method=name,
            seed=TUNING_SEED,
            budget=options.budget or family.seconds,
            points=options.points,
            output=str(options.results / "tuning.jsonl"),
            clock=options.clock,
            prompts="train",
            changes={**fixed, **dict(choice)},
            command=command,
            trial=True,
        )
        for name, choice in itertools.product(_names(options, family), choices)
    ]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train the methods")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    tune = commands.add_parser("tune", help="short trials on training prompts")
    tune.add_argument("--vary", nargs="+", action="append", default=[], metavar="KEY VALUE")
    tune.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of every trial")
    for command, points in ((run, 9), (tune, 3)):
        command.add_argument("--pipeline", choices=sorted(FAMILIES), required=True)
        command.add_argument("--methods", nargs="+", help="all by default")
        command.add_argument("--budget", type=float, metavar="SECONDS", help="training seconds of a run")
        command.add_argument("--clock", choices=sorted(CLOCKS), default="seconds", help="what the budget counts")
        command.add_argument(
            "--points", type=int, default=points, help="evaluations of a run, before and after included"
        )
        command.add_argument("--jobs", type=int, default=1, help="runs at a time")
    for command in (run, tune, commands.add_parser("draw", help="pictures and table")):
        command.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.command != "draw" and options.points < 2:
        parser.error(f"--points is {options.points}; give at least 2, before and after")
    return options


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; 1 if a run failed."""
    options = parse(arguments)
    command = shlex.join(["python", "-m", "benchmarks.curves", *map(portable_argument, arguments)])
    if options.command == "draw":
        from benchmarks.curves.draw import draw_all

        for file in draw_all(options.results):
            print(file)
        return 0
    family = FAMILIES[options.pipeline]
    jobs = (curve_jobs if options.command == "run" else tuning_jobs)(options, family, command)
    for job in jobs:
        job.config()  # a setting that does not hold is found before the first run
    failed = run_jobs(jobs, at_once=options.jobs)
    if options.command == "tune":
        print(ranking(read_lines(options.results / "tuning.jsonl"), pipeline=family.pipeline))
    return 1 if failed else 0


def _names(options: argparse.Namespace, family: Family) -> list[str]:
    if options.methods is None:
        return [method.name for method in family.methods]
    return [family.method(name).name for name in options.methods]


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
