"""One process of several that teach a linear student together over gloo; the folder of the bank is its argument."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from difalign.objective.distillation import DistillationLoss
from difalign.train.distill_reward import DistillationSettings, StoredEstimates, distill
from difalign.train.runtime import Runtime
from difalign.train.team import Team
from tests.teachers import linear_reward

SIGMAS = (0.4, 0.8)


def teach(folder: Path, team: Team | None) -> None:
    """Batches of seven rows, which two processes cannot halve, and pairs of rows that lie with different processes."""
    source = torch.Generator().manual_seed(3)
    clean = torch.randn(42, 12, generator=source)
    estimates = {s: (clean + s * torch.randn(42, 12, generator=source)).reshape(-1, 3, 2, 2) for s in SIGMAS}
    table = StoredEstimates(tuple(f"prompt {row // 6}" for row in range(42)), clean.sum(dim=1), estimates)
    loss = DistillationLoss(error_weight=0.5, ranking_weight=1.0)
    settings = DistillationSettings(curriculum=SIGMAS, learning_rate=1e-2, batch_size=7, epochs=2, loss=loss)
    distill(linear_reward(torch.linspace(0.5, 1.5, 12)), table, settings=settings, folder=folder, team=team)


def main() -> None:
    """Teach as the launcher says, and leave the group."""
    torch.set_num_threads(1)
    runtime = Runtime(wait_seconds=60)
    teach(Path(sys.argv[1]), runtime)
    runtime.close()


if __name__ == "__main__":
    main()
