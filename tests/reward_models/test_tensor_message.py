"""Tensors and a header as bytes: what is written is read, by safetensors of any make; the rest is refused."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load, save

from difalign.reward_models.tensor_message import SCHEMA, TensorMessage


def test_what_is_written_is_read():
    values = {"media": torch.arange(24, dtype=torch.uint8).view(2, 3, 4).transpose(1, 2), "scores": torch.rand(2)}
    body = TensorMessage(values, {"prompts": ["a red circle", 'ünïcode "quoted"']}).to_bytes()
    read = TensorMessage.from_bytes(body)
    assert read.header == {"schema": SCHEMA, "prompts": ["a red circle", 'ünïcode "quoted"']}
    assert {name: tensor.tolist() for name, tensor in read.tensors.items()} == {
        name: tensor.tolist() for name, tensor in values.items()
    }
    assert load(body).keys() == values.keys()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is not safetensors"),
        (pickle.dumps({"scores": [1.0]}), "is not safetensors"),
        (save({"scores": torch.rand(2)}), "has no JSON under 'difalign'"),
        (save({"scores": torch.rand(2)}, metadata={"difalign": "[1"}), "has no JSON under 'difalign'"),
        (save({"scores": torch.rand(2)}, metadata={"difalign": "[1]"}), "which is no JSON object"),
        (save({"scores": torch.rand(2)}, metadata={"difalign": json.dumps({"schema": 2})}), "schema 2, and 1"),
    ],
    ids=["nothing", "pickle", "no header", "no JSON", "no object", "schema"],
)
def test_other_bytes_are_refused(body: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        TensorMessage.from_bytes(body)
