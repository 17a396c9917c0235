"""Tensors and a JSON header as one run of bytes, for rewards in another process: safetensors, never pickle.

Reading a pickle runs whatever its sender put into it; reading safetensors reads numbers. ``safetensors.torch.load``
drops the metadata, so that the header is read from the format itself: eight bytes, little-endian, that say the length
of a JSON object whose key ``__metadata__`` holds texts by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SCHEMA = 1  # of the header; another number is another language
_KEY = "difalign"  # of the metadata, under which the header lies as JSON
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class TensorMessage:
    """What one side says to the other."""

    tensors: Mapping[str, Tensor]
    header: Mapping[str, object]

    def to_bytes(self) -> bytes:
        """As it is sent."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        return save(tensors, metadata={_KEY: json.dumps({"schema": SCHEMA, **self.header})})

    @classmethod
    def from_bytes(cls, body: bytes) -> TensorMessage:
        """What ``to_bytes`` wrote, or a server in another language.

        Raises:
            ValueError: if it is not safetensors, has no header, or one of another schema.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(body)
        except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a type that torch has not
            raise ValueError(f"is not safetensors ({error})") from None
        header = _header(body)
        if header.get("schema") != SCHEMA:
            raise ValueError(f"has a header of schema {header.get('schema')!r}, and {SCHEMA} is spoken here")
        return cls(tensors, header)


def _header(body: bytes) -> Mapping[str, object]:
    """The JSON under our key; ``body`` is known to be safetensors."""
    length = int.from_bytes(body[:_LENGTH_BYTES], "little")
    metadata = json.loads(body[_LENGTH_BYTES : _LENGTH_BYTES + length]).get("__metadata__", {})
    try:
        header = json.loads(metadata[_KEY])
    except (KeyError, ValueError):
        raise ValueError(f"has no JSON under {_KEY!r} in the metadata") from None
    if not isinstance(header, dict):
        raise ValueError(f"has {header!r} under {_KEY!r} in the metadata, which is no JSON object")
    return header
