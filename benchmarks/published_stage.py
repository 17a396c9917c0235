"""One B2-DiffuRL stage in the structure of the published scripts (arXiv 2503.11240): three processes and their files.

A yardstick for ``bench_b2_stage``, written from the description of those scripts and not from their text:

- ``sample``: batches of 8 prompts walk the DDIM chain at eta 1; where the trained interval begins every trajectory is
  copied K times, and each copy evaluates the network anew at that step and at all later ones. Whole trajectories, with
  their prompt embeddings, go into one file; every picture becomes a PNG, cut to eight bits;
- ``select``: pictures are read again and scored in chunks of 8; z-scores against all rewards of the prompt; the best
  and the worst branch of each start noise are kept if they pass the thresholds, cut to the interval;
- ``train``: trajectories in mini-batches of 2, their steps shuffled each on its own, one (mini-batch, step) at a time:
  forward with guidance, log-prob, clipped loss, backward. An update takes so many trajectories; what is left over at
  the end is dropped. Weights and the optimiser's moments go into files again.

Noise and the order of trajectories are drawn beforehand or by the trainer's key, so that both sides do the same work.
Differs from the scripts: float32, a mini-batch may hold one trajectory, and the adapters are peft's.

    python -m benchmarks.published_stage sample FOLDER
"""

from __future__ import annotations

import json
import math
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

STEPS = ("sample", "select", "train")
JOB, NOISE, ORDER, OUTCOME = "job.json", "noise.pt", "order.json", "outcome.pt"
_SAMPLES, _SELECTED, _REWARDS, _PICTURES = "samples.pkl", "selected.pkl", "rewards.json", "pictures"
_SCORE_CHUNK, _MINI_BATCH = 8, 2  # of the released scripts

Trajectory = dict[str, Any]  # embeds [L, D], timesteps [N], log_probs [N], latents and next_latents [N, *latent]


@dataclass(frozen=True, slots=True)
class Job:
    """What a stage does."""

    pipeline: str  # a diffusers folder
    adapters: str  # a folder with LoRA weights
    prompts: tuple[str, ...]  # one a start noise
    reward: str  # a folder with a CLIP model
    steps: int
    interval: int  # the last steps that branches go apart in and that are trained on
    children: int
    eta: float
    guidance: float
    batch: int  # start noises a forward in sampling
    thresholds: tuple[float, float]
    advantage_clip: float
    advantage_eps: float
    clip_range: float
    trajectories_per_update: int
    passes: int
    order_key: tuple[int, int]  # (seed, first update) of the trainer
    optimizer: Mapping[str, Any]  # arguments of AdamW
    max_grad_norm: float
    keep_outcome: bool = False  # write the first gradient and the last weights, to be compared

    def write(self, folder: Path) -> None:
        """For the processes."""
        (folder / JOB).write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path) -> Job:
        """What ``write`` wrote."""
        return Job(**json.loads((folder / JOB).read_text()))


@final
class Model:
    """diffusers' Stable Diffusion with DDIM steps; adapters are read from their file."""

    def __init__(self, job: Job) -> None:
        """Load it."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        pipe = StableDiffusionPipeline.from_pretrained(
            job.pipeline, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        pipe.scheduler = scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        assert isinstance(scheduler, DDIMScheduler)
        scheduler.set_timesteps(job.steps)
        pipe.load_lora_weights(job.adapters)
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.requires_grad_(False).eval()
        self.pipe: Any = pipe
        self.timesteps: Tensor = scheduler.timesteps
        self._job = job

    @property
    def adapters(self) -> dict[str, torch.nn.Parameter]:
        """The adapters' weights by name, without the adapter's own."""
        named = self.pipe.unet.named_parameters()
        return {name.replace(".default_0.", "."): value for name, value in named if ".lora_" in name}

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """[B, L, D]."""
        return self.pipe.encode_prompt(prompts, "cpu", 1, False)[0]

    def noise(self, x: Tensor, timestep: Tensor, embeds: Tensor, negative: Tensor) -> Tensor:
        """The prediction after guidance, [B, *latent]; timestep is [B]."""
        texts = torch.cat([negative.expand(len(x), -1, -1), embeds])
        output = self.pipe.unet(torch.cat([x, x]), torch.cat([timestep, timestep]), encoder_hidden_states=texts)
        uncond, cond = output.sample.chunk(2)
        return uncond + self._job.guidance * (cond - uncond)

    def step(self, x: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, *latent] and std [B, 1, 1, 1] of the DDIM step (arXiv 2010.02502, Eq. 12 and 16)."""
        scheduler = self.pipe.scheduler
        before = timestep - scheduler.config.num_train_timesteps // self._job.steps
        kept = scheduler.alphas_cumprod[timestep][:, None, None, None]
        kept_next = scheduler.alphas_cumprod[before.clamp_min(0)][:, None, None, None]
        std = self._job.eta * ((1 - kept_next) / (1 - kept) * (1 - kept / kept_next)).sqrt()
        clean = (x - (1 - kept).sqrt() * noise) / kept.sqrt()
        return kept_next.sqrt() * clean + (1 - kept_next - std**2).sqrt() * noise, std

    def pictures(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1]."""
        images = self.pipe.vae.decode(x / self.pipe.vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(images, output_type="pt")


def log_prob(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mean log-density over latent elements, [B]."""
    density = -((x_next.detach() - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return density.mean(dim=(1, 2, 3))


# --- sample -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(folder: Path, job: Job) -> Callable[[], None]:
    """Trajectories into one file, pictures into PNGs; rows go batch, branch, start noise of the batch."""
    model, noise = Model(job), torch.load(folder / NOISE, weights_only=True)

    @torch.no_grad()
    def work() -> None:
        (folder / _PICTURES).mkdir(exist_ok=True)
        negative = model.encode([""])
        kept: list[Trajectory] = []
        for low in range(0, len(job.prompts), job.batch):
            rows = slice(low, low + job.batch)
            embeds = model.encode(list(job.prompts[rows]))
            branches = _walk(model, job, (embeds, negative), noise["start"][rows], noise["steps"][rows])
            for k, branch in enumerate(branches):
                _write_pictures(model.pictures(branch[-1].x_next), folder / _PICTURES, low, k)
                kept += _trajectories(model, branch, embeds, first=low, child=k)
        with (folder / _SAMPLES).open("wb") as stream:
            pickle.dump(kept, stream)

    return work


@dataclass(frozen=True, slots=True)
class _Edge:
    x: Tensor  # [B, *latent]
    x_next: Tensor  # [B, *latent]
    log_prob: Tensor  # [B]


def _walk(
    model: Model, job: Job, texts: tuple[Tensor, Tensor], start: Tensor, noise: Tensor
) -> list[tuple[_Edge, ...]]:
    """Every branch of one batch as the edges of its whole chain; ``texts`` are its own and the negative one."""
    embeds, negative = texts
    branches: list[tuple[_Edge, ...]] = [()]
    for i, timestep in enumerate(model.timesteps):
        if job.steps - i == job.interval:
            branches = branches * job.children
        grown = []
        for k, branch in enumerate(branches):
            x = branch[-1].x_next if branch else start
            times = timestep.expand(len(x))
            mean, std = model.step(x, model.noise(x, times, embeds, negative), times)
            x_next = mean + std * noise[:, i, k]
            grown.append((*branch, _Edge(x, x_next, log_prob(x_next, mean, std))))
        branches = grown
    return branches


def _trajectories(
    model: Model, branch: tuple[_Edge, ...], embeds: Tensor, *, first: int, child: int
) -> list[Trajectory]:
    stacked = {
        "latents": torch.stack([edge.x for edge in branch], dim=1),
        "next_latents": torch.stack([edge.x_next for edge in branch], dim=1),
        "log_probs": torch.stack([edge.log_prob for edge in branch], dim=1),
    }
    return [
        {"root": first + b, "child": child, "embeds": embeds[b].clone(), "timesteps": model.timesteps.clone()}
        | {name: values[b].clone() for name, values in stacked.items()}
        for b in range(len(embeds))
    ]


def _write_pictures(images: Tensor, folder: Path, first: int, child: int) -> None:
    from PIL import Image

    for b, pixels in enumerate((images * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{first + b:04d}_{child}.png")


# --- select -------------------------------------------------------------------------------------------------------


def select(folder: Path, job: Job) -> Callable[[], None]:
    """Rewards of the PNGs, and the kept trajectories, cut to the interval."""
    from difalign.reward_models.clip import ClipReward

    reward = ClipReward.from_pretrained(job.reward)

    def work() -> None:
        with (folder / _SAMPLES).open("rb") as stream:
            trajectories: list[Trajectory] = pickle.load(stream)
        scores: list[float] = []
        for low in range(0, len(trajectories), _SCORE_CHUNK):
            chunk = trajectories[low : low + _SCORE_CHUNK]
            images = torch.stack([_read_picture(folder / _PICTURES, each) for each in chunk])
            scores += reward.score(images, [job.prompts[each["root"]] for each in chunk]).scores.tolist()
        units = [_unit(job, each) for each in trajectories]
        (folder / _REWARDS).write_text(json.dumps(dict(zip(units, scores, strict=True))))
        chosen = _extremes(job, trajectories, _z_scores(job, trajectories, torch.tensor(scores).double()))
        with (folder / _SELECTED).open("wb") as stream:
            pickle.dump([_cut(trajectories[row], job, z) for row, z in chosen], stream)

    return work


def rewards(folder: Path, job: Job) -> Tensor:
    """What ``select`` found, [N] by start noise and branch."""
    found = json.loads((folder / _REWARDS).read_text())
    return torch.tensor([found[str(unit)] for unit in range(len(job.prompts) * job.children)])


def _read_picture(folder: Path, of: Trajectory) -> Tensor:
    """[3, H, W] in [0, 1]."""
    import numpy as np
    from PIL import Image

    with Image.open(folder / f"{of['root']:04d}_{of['child']}.png") as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _z_scores(job: Job, trajectories: list[Trajectory], scores: Tensor) -> Tensor:
    """Against all rewards of the prompt, [N]; the first stage has no history."""
    texts = [job.prompts[each["root"]] for each in trajectories]
    z = torch.zeros_like(scores)
    for text in set(texts):
        rows = torch.tensor([other == text for other in texts])
        z[rows] = (scores[rows] - scores[rows].mean()) / (scores[rows].std() + job.advantage_eps)
    return z.float()


def _extremes(job: Job, trajectories: list[Trajectory], z: Tensor) -> list[tuple[int, float]]:
    """(row, z) of what is kept."""
    high, low = job.thresholds
    chosen: list[tuple[int, float]] = []
    for root in range(len(job.prompts)):
        rows = sorted((r for r, each in enumerate(trajectories) if each["root"] == root), key=_child(trajectories))
        best, worst = max(rows, key=lambda r: float(z[r])), min(rows, key=lambda r: float(z[r]))
        chosen += [(best, float(z[best]))] if z[best] >= high else []
        chosen += [(worst, float(z[worst]))] if z[worst] < low else []
    return chosen


def _child(trajectories: list[Trajectory]) -> Callable[[int], int]:
    return lambda row: trajectories[row]["child"]


def _cut(trajectory: Trajectory, job: Job, z: float) -> Trajectory:
    chain = ("timesteps", "log_probs", "latents", "next_latents")
    return {**trajectory, **{name: trajectory[name][-job.interval :].clone() for name in chain}, "advantage": z}


# --- train --------------------------------------------------------------------------------------------------------


def train(folder: Path, job: Job) -> Callable[[], None]:
    """As many updates as the kept trajectories fill."""
    from peft.utils.save_and_load import get_peft_model_state_dict

    model = Model(job)
    parameters = list(model.adapters.values())
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(parameters, **job.optimizer)

    def work() -> None:
        with (folder / _SELECTED).open("rb") as stream:
            kept: list[Trajectory] = pickle.load(stream)
        negative, size = model.encode([""]), job.trajectories_per_update
        order = _order(job, kept)
        shuffle = torch.Generator().manual_seed(0)
        outcome: dict[str, dict[str, Tensor]] = {}
        for update in range(len(order) // size):
            chosen = order[update * size : (update + 1) * size]
            for low in range(0, size, _MINI_BATCH):
                _descend(model, job, [kept[row] for row in chosen[low : low + _MINI_BATCH]], negative, shuffle)
            torch.nn.utils.clip_grad_norm_(parameters, job.max_grad_norm)
            if job.keep_outcome and update == 0:
                outcome["gradient"] = {name: _copy(value.grad) for name, value in model.adapters.items()}
            optimizer.step()
            optimizer.zero_grad()
        weights = get_peft_model_state_dict(model.pipe.unet, adapter_name="default_0")
        type(model.pipe).save_lora_weights(folder / "after", unet_lora_layers=weights)
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        (folder / ORDER).write_text(json.dumps([_unit(job, kept[row]) for row in order]))
        if job.keep_outcome:
            outcome["weights"] = {name: _copy(value) for name, value in model.adapters.items()}
            torch.save(outcome, folder / OUTCOME)

    return work


def _copy(values: Tensor | None) -> Tensor:
    assert values is not None, "every adapter takes gradient"
    return values.detach().clone()


def _order(job: Job, kept: list[Trajectory]) -> list[int]:
    """The rows of all passes one after the other, shuffled by the trainer's key."""
    from difalign.core.rng import generator

    row_of = {_unit(job, each): row for row, each in enumerate(kept)}
    known, order = sorted(row_of), []
    for number in range(job.passes):
        shuffled = torch.randperm(len(known), generator=generator("trajectories", *job.order_key, number)).tolist()
        order += [row_of[known[place]] for place in shuffled]
    return order


def _unit(job: Job, trajectory: Trajectory) -> int:
    return trajectory["root"] * job.children + trajectory["child"]


def _descend(model: Model, job: Job, batch: list[Trajectory], negative: Tensor, shuffle: torch.Generator) -> None:
    """The gradient of one mini-batch, one of its shuffled steps after the other."""
    rows = torch.arange(len(batch))
    places = torch.stack([torch.randperm(job.interval, generator=shuffle) for _ in batch])
    stacked = {name: torch.stack([each[name] for each in batch]) for name in ("latents", "next_latents", "log_probs")}
    timesteps, embeds = (torch.stack([each[name] for each in batch]) for name in ("timesteps", "embeds"))
    advantage = torch.tensor([each["advantage"] for each in batch]).clamp(-job.advantage_clip, job.advantage_clip)
    for place in places.T:
        x, times = stacked["latents"][rows, place], timesteps[rows, place]
        mean, std = model.step(x, model.noise(x, times, embeds, negative), times)
        ratio = (log_prob(stacked["next_latents"][rows, place], mean, std) - stacked["log_probs"][rows, place]).exp()
        clipped = ratio.clamp(1 - job.clip_range, 1 + job.clip_range)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped).sum()
        (loss / (job.trajectories_per_update * job.interval)).backward()


def main(step: str, folder: Path) -> None:
    """Load, then work; leaves the seconds of both beside the results."""
    torch.set_num_threads(1)
    work = {"sample": sample, "select": select, "train": train}[step](folder, Job.read(folder))
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "startup_cpu": cpu}
    (folder / f"{step}.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
