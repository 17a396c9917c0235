"""Runs as processes of their own, a few at a time, each on one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.curves.training import Job

_PAUSE = 0.5  # seconds between two looks at the processes


def run_jobs(jobs: Sequence[Job], *, at_once: int) -> list[Job]:
    """Run every job, ``at_once`` at a time; returns those that failed, whose output went to standard error."""
    waiting = list(jobs)
    running: list[tuple[Job, subprocess.Popen[bytes], float]] = []
    failed: list[Job] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                print(f"start {_name(job)} ({len(waiting)} wait)", flush=True)
                running.append((job, start(job), time.monotonic()))
            for job, process, since in [entry for entry in running if entry[1].poll() is not None]:
                running.remove((job, process, since))
                state = "done" if process.returncode == 0 else f"FAILED ({process.returncode})"
                print(f"{state} {_name(job)} after {time.monotonic() - since:.0f} s", flush=True)
                if process.returncode:
                    failed.append(job)
            time.sleep(_PAUSE)
    finally:
        for _, process, _ in running:
            process.terminate()
    return failed


def start(job: Job) -> subprocess.Popen[bytes]:
    """A worker with one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.curves.training", json.dumps(asdict(job))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _name(job: Job) -> str:
    changes = " ".join(f"{key}={value}" for key, value in job.changes.items())
    return f"{job.pipeline} {job.method} seed {job.seed}{' ' if changes else ''}{changes}"
