"""A reward that other processes compute: for scorers whose libraries or memory do not fit beside the training.

What goes over the wire stands in ``docs/remote_rewards.md``; ``difalign rewards serve`` and
``samples/reward_server.py`` are servers.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import torch
from torch import Tensor

from difalign.core.errors import ConfigError
from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.media_encoding import ENCODINGS, Encoding
from difalign.reward_models.score_messages import ScoreReply, ScoreRequest
from difalign.reward_models.server_connection import BadAnswer, Connection, NoAnswer
from difalign.reward_models.server_pool import ServerPool, back_off

_LOG = logging.getLogger(__name__)
_REST = 10.0  # seconds that a server which keeps failing is left alone


class ScorerChanged(ConfigError):
    """Another reward answers than the one that was agreed on."""


@final
class RemoteReward:
    """Scores from HTTP servers, ``micro_batch`` pictures a request, several requests at once; no gradient.

    Pixels are rounded to 8 bits. A request that finds no server, or a busy one, is repeated, with another server if
    there is one, until ``retries`` or ``deadline`` are spent; its rows are then not valid. So are rows that the server
    could not score, and an answer that is none: a number in their place would judge samples for what the server did.
    """

    differentiable = False

    def __init__(
        self,
        url: str,  # such as http://127.0.0.1:18085; several, with commas between them, share the work
        *,
        timeout: float = 300.0,  # seconds without a byte
        deadline: float = 900.0,  # seconds for a request with all its repetitions
        micro_batch: int = 64,
        retries: int = 10,  # with the pauses of back_off, some three minutes
        pause: float = 1.0,  # seconds before the first repetition
        parallel: int = 2,  # requests at once and server: one is scored while the next is on its way
        patience: int = 3,  # failures in a row after which a server is left alone for a while
        encoding: Encoding = "raw",
        card_hash: str = "",  # that the servers must have; default: that of the first
        token_variable: str = "DIFALIGN_REWARD_TOKEN",  # of the environment; where it is set, it is sent
        name: str = "remote",
    ) -> None:
        """Raises ConfigError if no server answers or they are not one reward, ValueError for a bad option."""
        _check_options({"micro_batch": micro_batch, "parallel": parallel, "patience": patience}, least=1)
        _check_options({"retries": retries, "pause": pause}, least=0)
        _check_options({"timeout": timeout, "deadline": deadline}, least=1e-3)
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding = {encoding!r}: must be one of {', '.join(ENCODINGS)}")
        urls = [part.rstrip("/") for part in url.replace(",", " ").split()]
        if not urls or len(set(urls)) != len(urls):
            raise ValueError(f"url = {url!r}: must be one address, or several different ones with commas between them")
        self.name = name
        self._deadline, self._micro_batch, self._retries, self._pause = deadline, micro_batch, retries, pause
        self._encoding: Encoding = encoding
        self._random = random.Random()  # when to come back; it reaches no score
        self._connections = {one: Connection(one, timeout=timeout, token_variable=token_variable) for one in urls}
        self._workers = ThreadPoolExecutor(parallel * len(urls), thread_name_prefix=f"reward-{name}")
        self._joiner = ThreadPoolExecutor(1, thread_name_prefix=f"reward-{name}-join")
        self._close = weakref.finalize(self, _close, tuple(self._connections.values()), (self._workers, self._joiner))
        self._pool = ServerPool(urls, patience=patience, rest=_REST, clock=time.monotonic)
        self._card_hash = self._agreed(card_hash)
        if encoding != "raw":
            changed = "; scores are those of the changed pictures" if encoding == "jpeg" else ""
            _LOG.warning("reward %s: pictures are sent as %s%s", name, encoding, changed)

    @property
    def card_hash(self) -> str:
        """Of the reward that all servers have."""
        return self._card_hash

    def close(self) -> None:
        """End threads and connections; an object that is no longer used does so by itself."""
        self._close()

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """Score pictures [N, 3, H, W], or clips [N, F, 3, H, W], in [0, 1] against one prompt each.

        Raises:
            ScorerChanged: if a server scores with another card or checkpoint than at the start.
            ValueError: if the call is wrong, or a server refuses it.
        """
        return self.submit(media, prompts, metadata=metadata, sigma=sigma).result()

    def submit(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> Future[RewardOutput]:
        """What ``score`` returns, later, rows in the order of ``media``; the pixels are copied before this returns.

        Raises:
            ValueError: if the call is wrong.
        """
        _check_call(media, prompts, metadata)
        # In few passes over the pixels: a sum is finite where all its terms are.
        sums = media.detach().flatten(1).sum(dim=1, dtype=torch.float32)
        broken = (~sums.isfinite()).nonzero().flatten().tolist()
        scaled = media.detach().float() * 255
        if broken:
            scaled.nan_to_num_()
        encoded = scaled.round_().clamp_(0, 255).to(torch.uint8).cpu()
        parts: list[Future[RewardOutput]] = []
        for start in range(0, len(prompts), self._micro_batch):
            rows = slice(start, start + self._micro_batch)
            request = ScoreRequest(
                encoded[rows],
                tuple(prompts[rows]),
                None if metadata is None else tuple(metadata[rows]),
                request_id=uuid.uuid4().hex,
                sigma=sigma,
                encoding=self._encoding,
            )
            parts.append(self._workers.submit(self._part, request))
        return self._joiner.submit(_joined, parts, broken, media.device)

    def _part(self, request: ScoreRequest) -> RewardOutput:
        """The answer to one request, or rows that are not valid."""
        try:
            return self._ask(request)
        except NoAnswer as error:
            why = str(error)
            rows = len(request)
            return RewardOutput(
                torch.full((rows,), torch.nan), {}, torch.zeros(rows, dtype=torch.bool), dict.fromkeys(range(rows), why)
            )

    def _ask(self, request: ScoreRequest) -> RewardOutput:
        body = request.to_bytes()
        end = time.monotonic() + self._deadline
        last: str | None = None
        attempt = 0
        while True:
            choice = self._pool.choose(avoid=last)
            last = choice.url
            try:
                time.sleep(min(choice.wait, max(end - time.monotonic(), 0.0)))
                reply = self._reply(choice.url, body, request, end)
            except NoAnswer as error:
                self._pool.failed(choice.url)
                lies_always = isinstance(error, BadAnswer) and len(self._connections) == 1
                wait = max(back_off(attempt, pause=self._pause, source=self._random), error.come_back)
                attempt += 1
                if lies_always or attempt > self._retries or time.monotonic() + wait > end:
                    raise type(error)(f"{error}; asked {attempt} times") from None
                _LOG.warning("reward %s: %s; asking again in %.1f s", self.name, error, wait)
                time.sleep(wait)
            except BaseException:
                self._pool.left(choice.url)
                raise
            else:
                self._pool.answered(choice.url)
                return reply.output

    def _reply(self, url: str, body: bytes, request: ScoreRequest, end: float) -> ScoreReply:
        answer = self._connections[url].post("/v1/score", body, end=end)
        try:
            reply = ScoreReply.from_bytes(answer, rows=len(request))
        except ValueError as error:
            raise BadAnswer(f"the answer of {url} {error}") from None
        if reply.request_id != request.request_id:
            raise BadAnswer(f"the answer of {url} is to another request, {reply.request_id!r:.80}")
        self._check_hash(url, reply.card_hash, self._card_hash)
        return reply

    def _agreed(self, wanted: str) -> str:
        """The hash that all servers who answer have.

        Raises:
            ConfigError: if none answers or two have another.
        """
        expected, reasons = wanted, []
        answered = False
        for url, connection in self._connections.items():
            try:
                about = self._introduced(connection)
            except NoAnswer as error:
                reasons.append(str(error))
                continue
            given = str(about.get("card_hash", ""))
            if answered or wanted:
                self._check_hash(url, given, expected)
            expected, answered = given, True
        if not answered:
            raise ConfigError(
                f"no reward server answers: {'; '.join(reasons)}; asked {self._retries + 1} times: start it, or give "
                "its address as options.url"
            )
        for reason in reasons:
            _LOG.warning("reward %s: %s; going on with the others", self.name, reason)
        return expected

    def _introduced(self, connection: Connection) -> Mapping[str, object]:
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(back_off(attempt - 1, pause=self._pause, source=self._random))
            try:
                return connection.info()
            except NoAnswer:
                if attempt == self._retries:
                    raise
        raise AssertionError("the last attempt returns or raises")

    @staticmethod
    def _check_hash(url: str, given: str, expected: str) -> None:
        if given != expected:
            raise ScorerChanged(
                f"{url} scores with card hash {given or 'none'} where {expected or 'none'} was agreed on: its card, "
                "options or checkpoint are others; start it with the same, or begin a new run"
            )


def _check_options(options: Mapping[str, float], *, least: float) -> None:
    for name, value in options.items():
        if value < least:
            raise ValueError(f"{name} = {value}: must be at least {least}")


def _check_call(media: Tensor, prompts: Sequence[str], metadata: Metadata | None) -> None:
    if media.dim() not in (4, 5) or media.shape[-3] != 3 or not media.is_floating_point() or 0 in media.shape:
        raise ValueError(
            f"media of type {media.dtype} and shape {list(media.shape)}: must be floats [N, 3, H, W] or "
            "[N, F, 3, H, W] in [0, 1], none of them 0"
        )
    if len(media) != len(prompts):
        raise ValueError(f"{len(media)} pictures but {len(prompts)} prompts; give one prompt a picture")
    if metadata is not None and len(metadata) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(metadata)} metadata; give one mapping a prompt")
    if torch.is_grad_enabled() and media.requires_grad:
        raise ValueError("a remote reward has no gradient; train with policy gradients, or detach the media")


def _joined(parts: Sequence[Future[RewardOutput]], broken: Sequence[int], device: torch.device) -> RewardOutput:
    """The parts in their order; rows of pictures that hold NaN are not valid.

    Raises:
        ValueError: if they do not have the same components.
    """
    outputs = [part.result() for part in parts]
    named = [output for output in outputs if output.components]
    names = list(named[0].components) if named else []
    if any(sorted(output.components) != sorted(names) for output in named):
        raise ValueError(
            f"the servers name other components from one request to the next: "
            f"{str([sorted(output.components) for output in named])[:300]}; let all run one version"
        )
    scores = torch.cat([output.scores for output in outputs])
    nothing = [torch.full_like(output.scores, torch.nan) for output in outputs]
    components = {
        name: torch.cat([output.components.get(name, lack) for output, lack in zip(outputs, nothing, strict=True)])
        for name in names
    }
    valid = torch.cat([output.valid for output in outputs if output.valid is not None])
    errors: dict[int, str] = {}
    start = 0
    for output in outputs:
        errors |= {start + row: why for row, why in output.errors.items()}
        start += len(output.scores)
    for row in broken:
        valid[row] = False
        errors[row] = "the picture holds values that are no finite numbers"
        for values in (scores, *components.values()):
            values[row] = torch.nan
    return RewardOutput(
        scores.to(device),
        {name: values.to(device) for name, values in components.items()},
        valid.to(device),
        dict(sorted(errors.items())),
    )


def _close(connections: Sequence[Connection], threads: Sequence[ThreadPoolExecutor]) -> None:
    for executor in threads:
        executor.shutdown(wait=False, cancel_futures=True)
    for connection in connections:
        connection.close()
