"""One process of several that run the toy together over gloo; its job is its argument, its place the environment."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Run the job; a signal is sent to the process that the job names, after as many scorings."""
    import torch

    from difalign.train.interrupt import Interrupted
    from tests.train.small_runs import Brightness, run_toy, toy_run_config
    from tests.train.test_resume import Signalled

    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    signalled = job["signal"] is not None and job["signal"]["rank"] == int(os.environ["RANK"])
    reward = Signalled(at=job["signal"]["at"], signum=signal.SIGTERM) if signalled else Brightness()
    try:
        run_toy(toy_run_config(Path(job["folder"]), **job["sections"]), reward=reward)
    except Interrupted as stop:
        raise SystemExit(stop.exit_code) from None


if __name__ == "__main__":
    main()
