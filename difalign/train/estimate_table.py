"""Stored estimates as training reads them: rows in any order, decoded where the reader wants pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from difalign.core.types import Source
from difalign.train.estimate_store import EstimateStore, ShardLabels, level_key

Pixels = Callable[[Tensor], Tensor]  # what is stored of a level, [N, ...], to pixels in [0, 1]

_SHADES = 255


@final
class ShardedTable:
    """A store as readers see it: the rows that the teacher could score.

    Rows are read from the files when they are asked for. Decoded estimates are rounded to 8 bits, as whoever saves a
    picture does and as scorers read pictures, so that it makes no difference whether they are kept.

    Args:
        store: with all shards.
        labels: of all shards, in order.
        source: whose estimates ``media`` shows.
        pixels: what is stored to pixels.
        device: where estimates are handed over.
        cache: keep the decoded estimates of a level in memory until another level is read.
    """

    def __init__(
        self,
        store: EstimateStore,
        labels: Sequence[ShardLabels],
        *,
        source: Source = "guided",
        pixels: Pixels,
        device: str | torch.device = "cpu",
        cache: bool = False,
    ) -> None:
        self._store = store
        self._source = source
        self._pixels = pixels
        self._device = device
        self._cached: dict[float, dict[int, Tensor]] | None = {} if cache else None
        places = [(shard, row) for shard, found in enumerate(labels) for row in found.valid]
        self._places = torch.tensor(places, dtype=torch.int64).reshape(-1, 2)
        rows = [store.plan.rows_of(shard)[row] for shard, row in places]
        self._prompts = [store.plan.prompt_of(row).text for row in rows]
        self._target = torch.tensor([labels[shard].scores[row] for shard, row in places], dtype=torch.float32)

    @property
    def prompts(self) -> Sequence[str]:
        """The prompt of each walk, N."""
        return self._prompts

    @property
    def target(self) -> Tensor:
        """The teacher's raw score of each finished sample, [N] float32."""
        return self._target

    @torch.no_grad()
    def media(self, sigma: float, rows: Tensor) -> Tensor:
        """Pictures of ``rows`` ([B] int64) at a level, [B, 3, H, W] in [0, 1].

        Raises:
            ConfigError: if a shard is missing or damaged.
        """
        if self._cached is None:
            return self._decoded(sigma, rows).to(self._device).float() / _SHADES
        if sigma not in self._cached:
            self._cached = {sigma: {}}
        level = self._cached[sigma]
        new = torch.tensor([row for row in dict.fromkeys(rows.tolist()) if row not in level], dtype=torch.int64)
        if new.numel():
            level |= zip(new.tolist(), self._decoded(sigma, new), strict=True)
        return torch.stack([level[row] for row in rows.tolist()]).to(self._device).float() / _SHADES

    def latents(self, sigma: float, rows: Tensor, sources: Sequence[Source]) -> Tensor:
        """Latents of ``rows`` ([B] int64) at a level, sources along the channels, [B, k C, h, w] float32.

        Raises:
            ConfigError: if a shard is missing or damaged.
        """
        return torch.cat([self._stored(source, sigma, rows).float() for source in sources], dim=1)

    def _decoded(self, sigma: float, rows: Tensor) -> Tensor:
        """Pictures of 8 bits on the CPU, [B, 3, H, W] uint8."""
        pixels = self._pixels(self._stored(self._source, sigma, rows))
        return (pixels.float() * _SHADES).round().clamp(0, _SHADES).to("cpu", torch.uint8)

    def _stored(self, source: str, sigma: float, rows: Tensor) -> Tensor:
        """What lies in the files, [B, ...], in the order asked for."""
        key, places = level_key(source, sigma), self._places[rows]
        found: list[Tensor] = [torch.empty(0)] * rows.numel()
        for shard in places[:, 0].unique().tolist():
            tensor = self._store.tensor(shard, key)
            for place in (places[:, 0] == shard).nonzero().flatten().tolist():
                found[place] = tensor[int(places[place, 1])]
        return torch.stack(found).to(self._device)
