"""What was saved, read back by diffusers around a fresh network: the same predictions, and no memory taken twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from difalign.pipelines.sd3 import SD3Pipeline
from difalign.pipelines.sdxl import SDXL
from difalign.pipelines.stable_diffusion import STABLE_DIFFUSION
from difalign.process.diffusion import DIFFUSION_RULES
from difalign.process.flow import FlowProcess
from tests.pipelines.packed import make
from tests.tiny_models import tiny_sd, tiny_sd3, tiny_sdxl

ADAPTERS: dict[str, Callable[[], Any]] = {
    "sd3": lambda: SD3Pipeline(tiny_sd3(), process=FlowProcess(), guidance_scale=1.0, max_sequence_length=0),
    "sd": lambda: STABLE_DIFFUSION(tiny_sd(), process=DIFFUSION_RULES["ddim"], guidance_scale=1.0),
    "flux": lambda: make("flux"),
    "qwen": lambda: make("qwen"),
    "sdxl": lambda: SDXL(tiny_sdxl(), process=DIFFUSION_RULES["ddim"], guidance_scale=1.0),
}


@pytest.fixture(params=ADAPTERS)
def pipeline(request: pytest.FixtureRequest) -> Any:
    return ADAPTERS[request.param]()


def predict(pipeline: Any) -> Tensor:
    x = torch.randn(2, *pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return pipeline.predict(x, torch.tensor([500.0, 20.0]), pipeline.encode(["a red circle", "a blue star"]))


def tune(pipeline: Any) -> None:
    """Attach adapters and move them well away from nothing; alpha is not the rank."""
    pipeline.tuning.attach_lora(rank=2, alpha=6, seed=0)
    with torch.no_grad():
        for index, parameter in enumerate(pipeline.tuning.trainable_parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))


def test_adapters_read_back_predict_the_same(pipeline: Any, tmp_path: Path) -> None:
    base = predict(pipeline)
    tune(pipeline)
    tuned = predict(pipeline)
    assert float((tuned - base).abs().mean()) > 1e-2
    pipeline.tuning.save_lora(tmp_path)
    reread = pipeline.reread(tmp_path)
    torch.testing.assert_close(predict(reread), tuned, rtol=0, atol=1e-6)
    assert torch.equal(predict(pipeline), tuned)  # which was left alone
    assert reread.network is not pipeline.network


def test_frozen_weights_are_shared_and_adapters_are_not(pipeline: Any, tmp_path: Path) -> None:
    tune(pipeline)
    pipeline.tuning.save_lora(tmp_path)
    reread = pipeline.reread(tmp_path)
    mine = {parameter.data_ptr() for parameter in pipeline.network.parameters() if not parameter.requires_grad}
    theirs = {name: parameter.data_ptr() for name, parameter in reread.network.named_parameters()}
    assert not any(tensor.is_meta for tensor in (*reread.network.parameters(), *reread.network.buffers()))
    assert {name for name, pointer in theirs.items() if pointer not in mine} == {n for n in theirs if ".lora_" in n}


def test_a_file_that_lost_its_alpha_reads_differently(pipeline: Any, tmp_path: Path) -> None:
    """Without the configuration in its header a reader takes alpha for the rank: a third of what was trained."""
    tune(pipeline)
    tuned = predict(pipeline)
    file = pipeline.tuning.save_lora(tmp_path)
    with safe_open(str(file), framework="pt") as opened:
        assert opened.metadata()
    save_file(load_file(file), file)
    assert float((predict(pipeline.reread(tmp_path)) - tuned).abs().mean()) > 1e-3


def test_a_whole_network_read_back_predicts_the_same(pipeline: Any, tmp_path: Path) -> None:
    pipeline.tuning.train_all(keep_reference=False)
    with torch.no_grad():
        for parameter in pipeline.tuning.trainable_parameters():
            parameter.mul_(1.1)
    tuned = predict(pipeline)
    pipeline.tuning.save_network(tmp_path / "network")
    reread = pipeline.reread(tmp_path / "network")
    assert torch.equal(predict(reread), tuned)
    assert not any(parameter.requires_grad for parameter in reread.network.parameters())
