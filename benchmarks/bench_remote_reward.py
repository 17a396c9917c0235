"""A reward in another process: what the way there costs, and what a server does for many clients.

The scorer is the mean pixel, which costs next to nothing, so that what is measured is the way: `overhead` is seconds of
an image through ``RemoteReward`` and ``difalign rewards serve`` less those of the same call in process, wall-clock, the
fastest round, on this machine's loopback. `formats` encodes and decodes the same images without a server: ours
(safetensors), its PNG and JPEG options, and two ways of other code, JSON with base64 PNG and pickle. Reading a pickle
runs whatever its sender put into it; it stands here for its speed alone. `clients` is the server under 1, 8 and 32
clients at once, each asking for ``--batch`` images a request.

    python -m benchmarks.bench_remote_reward --size 512 --batch 8
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import recorder, timing
from difalign.core.types import Metadata, RewardOutput
from difalign.reward_models.media_encoding import Encoding
from difalign.reward_models.remote import RemoteReward
from difalign.reward_models.score_messages import ScoreRequest

CLIENTS = (1, 8, 32)
CARD = """
name: mean-pixel
summary: the mean pixel
target: benchmarks.bench_remote_reward:MeanPixel
licence: Apache-2.0
"""


class MeanPixel:
    """The mean pixel."""

    name = "mean-pixel"
    differentiable = False

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """The mean of every image."""
        del prompts, metadata, sigma
        return RewardOutput(media.flatten(1).mean(dim=1))


def photographs(number: int, size: int) -> Tensor:
    """Smooth images with some noise, [N, 3, H, W] in [0, 1]: about as hard to pack as photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(number, 3, max(size // 32, 2), max(size // 32, 2), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (smooth + 0.01 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


@contextmanager
def server() -> Iterator[str]:
    """The address of ``difalign rewards serve`` in a process of its own, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder) / "mean_pixel.yaml"
        card.write_text(CARD)
        command = [sys.executable, "-c", "from difalign.cli.app import main; main()", "rewards", "serve", str(card)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIFALIGN_REWARD_TOKEN": ""}
        environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        options = ["--port", "0", "--accept", "png,jpeg"]
        with subprocess.Popen([*command, *options], env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield process.stdout.readline().split()[1]
            finally:
                process.kill()


def overhead(url: str, media: Tensor, *, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds an image, in process and through the server in each encoding; processor time is the client's."""
    prompts = ["a photo"] * len(media)
    sides: dict[str, Callable[[], object]] = {"in_process": lambda: MeanPixel().score(media, prompts)}
    for encoding in ("raw", "png", "jpeg"):
        remote = RemoteReward(url, encoding=encoding)
        sides[encoding] = lambda remote=remote: remote.score(media, prompts)
    for side in sides.values():
        side()
    clocks = {"wall": time.perf_counter, "client_processor": time.process_time}
    fastest = {
        name: timing.fastest(timing.alternate(sides, rounds=rounds, clock=clock)) for name, clock in clocks.items()
    }
    return {side: {name: 1000 * fastest[name][side] / len(media) for name in clocks} for side in sides}


def base64_png(media: Tensor) -> bytes:
    """JSON with a PNG of each image as text."""
    files = []
    for picture in media.permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        files.append(base64.b64encode(buffer.getvalue()).decode())
    return json.dumps({"images": files, "prompts": ["a photo"] * len(files)}).encode()


def read_base64_png(body: bytes) -> object:
    """The images again."""
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))) for file in json.loads(body)["images"]]


def formats(media: Tensor, *, rounds: int) -> dict[str, dict[str, float]]:
    """Bytes and milliseconds of processor time an image, of both ends together."""
    pixels = (media * 255).round().to(torch.uint8)
    prompts = ("a photo",) * len(media)

    def ours(encoding: Encoding) -> Callable[[], int]:
        def there_and_back() -> int:
            body = ScoreRequest(pixels, prompts, encoding=encoding).to_bytes()
            ScoreRequest.from_bytes(body, accepted=(encoding,))
            return len(body)

        return there_and_back

    def through_json() -> int:
        body = base64_png(pixels)
        read_base64_png(body)
        return len(body)

    def through_pickle() -> int:
        body = pickle.dumps({"images": pixels.numpy(), "prompts": prompts})
        pickle.loads(body)
        return len(body)

    sides: dict[str, Callable[[], int]] = {
        "safetensors": ours("raw"),
        "safetensors_png": ours("png"),
        "safetensors_jpeg": ours("jpeg"),
        "json_base64_png": through_json,
        "pickle": through_pickle,
    }
    size = {name: side() / len(media) for name, side in sides.items()}
    seconds = timing.fastest(timing.alternate(sides, rounds=rounds))
    return {name: {"bytes": size[name], "ms": 1000 * seconds[name] / len(media)} for name in sides}


def crowd(url: str, media: Tensor, *, clients: int, requests: int) -> dict[str, float]:
    """Images a second of all clients together, and the latency of a request, in milliseconds."""
    prompts = ["a photo"] * len(media)
    rewards = [RemoteReward(url, parallel=1) for _ in range(clients)]

    def ask(reward: RemoteReward) -> list[float]:
        seconds = []
        for _ in range(requests):
            begin = time.perf_counter()
            assert not reward.score(media, prompts).errors
            seconds.append(time.perf_counter() - begin)
        return seconds

    with ThreadPoolExecutor(clients) as threads:
        begin = time.perf_counter()
        every = sorted(seconds for found in threads.map(ask, rewards) for seconds in found)
        whole = time.perf_counter() - begin
    return {
        "images_per_second": clients * requests * len(media) / whole,
        "median_ms": 1000 * median(every),
        "p95_ms": 1000 * every[int(0.95 * (len(every) - 1))],
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = recorder.command_line(__doc__, rounds=5)
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--batch", type=int, default=8, help="images a request")
    parser.add_argument("--requests", type=int, default=8, help="of every client")
    return recorder.parse(parser, arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure and print one JSON line."""
    options = parse(arguments)
    media = photographs(options.batch, options.size)
    with server() as url:
        figures = {
            "ms_per_image": overhead(url, media, rounds=options.rounds),
            "formats": formats(media, rounds=options.rounds),
            "clients": {str(n): crowd(url, media, clients=n, requests=options.requests) for n in CLIENTS},
        }
    recorder.record("remote_reward", arguments, options=options, results=figures)


if __name__ == "__main__":
    main(sys.argv[1:])
