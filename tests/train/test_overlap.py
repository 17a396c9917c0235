"""A reward that is computed elsewhere works while the next batch is sampled, and changes nothing by it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from difalign.core.types import Metadata, RewardOutput
from tests.train.toy_run import Quadratic, quiet, toy_config, toy_trainer, weights


@dataclass(frozen=True)
class Elsewhere(Quadratic):
    """Answers in a thread of its own, and not before two batches were handed over."""

    log: list[str] = field(default_factory=list)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    handed: list[Future[None]] = field(default_factory=lambda: [Future(), Future()])

    def submit(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> Future[RewardOutput]:
        number = sum(entry == "handed over" for entry in self.log)
        self.log.append("handed over")
        self.handed[number].set_result(None)

        def answer() -> RewardOutput:
            self.handed[1].result(timeout=60)  # a trainer that waits for the first before it samples the second hangs
            self.log.append("answered")
            return Quadratic.score(self, media, prompts)

        return self.pool.submit(answer)


class Watched(nn.Module):
    """A network that says when it is asked."""

    def __init__(self, network: nn.Module, log: list[str]) -> None:
        super().__init__()
        self.network = network
        self.log = log

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.log[-1:] != ["sampled"] and not torch.is_grad_enabled():
            self.log.append("sampled")
        return self.network(*inputs)


def test_the_second_batch_is_sampled_before_the_first_is_answered():
    config = toy_config(training={"updates_per_rollout": 2}, sampling={"prompts_per_update": 2})
    reward = Elsewhere()
    trainer, pipeline = toy_trainer(config, reward=reward)
    pipeline.network = Watched(pipeline.network, reward.log)
    trainer._collector.collect(0, quiet)
    assert reward.log == ["sampled", "handed over", "sampled", "handed over", "answered", "answered"]


def test_nothing_else_changes():
    config = toy_config(training={"updates_per_rollout": 2}, sampling={"prompts_per_update": 2})
    after = []
    for reward in (Quadratic(), Elsewhere()):
        trainer, pipeline = toy_trainer(config, reward=reward)
        trainer.run(0, quiet)
        after.append(weights(pipeline))
    assert torch.equal(after[0], after[1])
