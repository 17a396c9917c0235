"""Tensors and a JSON header as one run of bytes, for rewards in another process: safetensors, never pickle.

Reading a pickle runs whatever its sender put into it; reading safetensors reads numbers. ``safetensors.torch.load``
drops the metadata, so that the header is read from the format itself: eight bytes, little-endian, that say the length
of a JSON object whose key ``__metadata__`` holds texts by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

SCHEMA = 1  # of the header; another number is another language
_KEY = "difalign"  # of the metadata, under which the header lies as JSON
_LENGTH_BYTES = 8
_LONGEST_HEADER = 1 << 22  # bytes; what JSON becomes in memory is some twenty times as large
_MOST_TENSORS = 256


@dataclass(frozen=True, slots=True)
class TensorMessage:
    """What one side says to the other."""

    tensors: Mapping[str, Tensor]
    header: Mapping[str, object]

    def to_bytes(self) -> bytes:
        """As it is sent.

        Raises:
            ValueError: if the header holds what JSON does not, such as NaN.
        """
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        try:
            header = json.dumps({"schema": SCHEMA, **self.header}, allow_nan=False)
        except TypeError as error:
            raise ValueError(f"the header is no JSON ({error}); send numbers, texts, lists and mappings") from None
        return save(tensors, metadata={_KEY: header})

    @classmethod
    def from_bytes(cls, body: bytes) -> TensorMessage:
        """What ``to_bytes`` wrote, or a server in another language.

        Raises:
            ValueError: if it is not safetensors, has no header, or one of another schema.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        header = _header(body)  # first, since its size bounds what the rest takes
        try:
            tensors = load(body)
        # KeyError: a type that torch has not. RuntimeError, TypeError: sides that no tensor has, around no element.
        except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"is not safetensors ({error})") from None
        if header.get("schema") != SCHEMA:
            raise ValueError(f"has a header of schema {header.get('schema')!r}, and {SCHEMA} is spoken here")
        return cls(tensors, header)


def _header(body: bytes) -> Mapping[str, object]:
    """The JSON under our key."""
    length = int.from_bytes(body[:_LENGTH_BYTES], "little")
    if len(body) < _LENGTH_BYTES or length > len(body) - _LENGTH_BYTES:
        raise ValueError("is not safetensors (its header does not fit into it)")
    if length > _LONGEST_HEADER:
        raise ValueError(f"has a header of {length} bytes; at most {_LONGEST_HEADER} are read")
    table = _json(body[_LENGTH_BYTES : _LENGTH_BYTES + length])
    if not isinstance(table, dict):
        raise ValueError("is not safetensors (its header is no JSON object)")
    if len(table) > _MOST_TENSORS:
        raise ValueError(f"holds {len(table)} tensors; at most {_MOST_TENSORS} are read")
    metadata = table.get("__metadata__")
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    header = _json(text) if isinstance(text, str) else None
    if header is None:
        raise ValueError(f"has no JSON under {_KEY!r} in the metadata")
    if not isinstance(header, dict):
        raise ValueError(f"has {header!r:.40} under {_KEY!r} in the metadata, which is no JSON object")
    return header


def _json(text: str | bytes) -> Any:
    """The value of a JSON text, None where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError; so is a number of too many digits
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
