"""Training the whole network: the kept reference, and the folder it is saved to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from difalign.pipelines.sd3 import SD3Pipeline
from difalign.process.flow import FlowProcess
from tests.tiny_models import tiny_sd3


@pytest.fixture
def pipeline() -> SD3Pipeline:
    return fresh()


def fresh() -> SD3Pipeline:
    return SD3Pipeline(tiny_sd3(), process=FlowProcess(), guidance_scale=1.0, max_sequence_length=0)


def predict(pipeline: SD3Pipeline) -> Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipeline.predict(x, torch.tensor([500.0]), pipeline.encode(["a red circle"]))


def perturb(pipeline: SD3Pipeline) -> None:
    with torch.no_grad():
        for parameter in pipeline.tuning.trainable_parameters():
            parameter.mul_(1.1)


def test_all_parameters_are_trained_and_the_reference_stays(pipeline: SD3Pipeline):
    base, sibling = predict(pipeline).detach(), pipeline.with_guidance(1.0)
    pipeline.tuning.train_all()
    assert len(pipeline.tuning.trainable_parameters()) == len(list(pipeline.network.parameters()))
    predict(pipeline).square().mean().backward()
    assert pipeline.network.proj_out.weight.grad is not None  # type: ignore[union-attr]
    perturb(pipeline)
    tuned = predict(pipeline)
    assert not torch.allclose(tuned, base)
    with pipeline.tuning.reference():
        reference = predict(pipeline)
        assert torch.equal(predict(sibling), base)
        with pipeline.tuning.reference():
            pass
        assert torch.equal(predict(pipeline), base)
    assert torch.equal(reference, base)
    assert not reference.requires_grad
    assert torch.equal(predict(pipeline), tuned)


def test_calling_it_again_keeps_the_first_reference(pipeline: SD3Pipeline):
    base = predict(pipeline).detach()
    pipeline.tuning.train_all()
    perturb(pipeline)
    pipeline.tuning.train_all()
    with pipeline.tuning.reference():
        assert torch.equal(predict(pipeline), base)


def test_an_untrained_pipeline_is_its_own_reference(pipeline: SD3Pipeline):
    base = predict(pipeline)
    with pipeline.tuning.reference():
        assert torch.equal(predict(pipeline), base)


def test_save_and_load_are_exact_and_diffusers_reads_the_folder(tmp_path: Path, pipeline: SD3Pipeline):
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    base = predict(pipeline).detach()
    pipeline.tuning.train_all()
    perturb(pipeline)
    pipeline.tuning.save_network(tmp_path)
    resumed = fresh()
    resumed.tuning.train_all()
    resumed.tuning.load_network(tmp_path)
    assert torch.equal(predict(resumed), predict(pipeline))
    with resumed.tuning.reference():
        assert torch.equal(predict(resumed), base)
    plain = SD3Transformer2DModel.from_pretrained(tmp_path)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, pipeline.network.state_dict()[name])


def test_refuses_a_missing_reference_mixed_tuning_and_foreign_folders(tmp_path: Path, pipeline: SD3Pipeline):
    pipeline.tuning.train_all(keep_reference=False)
    with pytest.raises(ValueError, match="keep_reference=True"), pipeline.tuning.reference():
        pass
    with pytest.raises(ValueError, match="no network folder"):
        pipeline.tuning.load_network(tmp_path / "absent")
    adapted = fresh()
    adapted.tuning.attach_lora(rank=2, alpha=2, seed=0)
    with pytest.raises(ValueError, match="not both"):
        adapted.tuning.train_all()
    with pytest.raises(ValueError, match="use save_lora"):
        adapted.tuning.save_network(tmp_path)
