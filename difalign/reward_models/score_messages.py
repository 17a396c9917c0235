"""What a client asks a reward server and what it is answered, with every rule that both sides hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from difalign.core.answers import checked
from difalign.core.types import RewardOutput
from difalign.reward_models.media_encoding import ENCODINGS, EncodedMedia, Encoding, decode_media, encode_media
from difalign.reward_models.tensor_message import TensorMessage

LARGEST_MEDIA = 1 << 28  # bytes of decoded pictures in a request
_LONGEST_PROMPT = 100_000  # characters
_LONGEST_ID = 200
_LONGEST_ERROR = 300  # characters of why a row has no score
_PART = "components."  # before the names of components


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Pictures or clips with one prompt each."""

    media: Tensor  # [N, 3, H, W] or [N, F, 3, H, W] uint8
    prompts: tuple[str, ...]  # N
    metadata: tuple[Mapping[str, object], ...] | None = None  # N
    request_id: str = ""
    sigma: float | None = None
    encoding: Encoding = "raw"

    def __len__(self) -> int:
        return len(self.prompts)

    def to_bytes(self) -> bytes:
        """As it is sent.

        Raises:
            ValueError: if the metadata hold what JSON does not.
        """
        header: dict[str, object] = {"prompts": list(self.prompts), "request_id": self.request_id}
        if self.metadata is not None:
            header["metadata"] = [dict(row) for row in self.metadata]
        if self.sigma is not None:
            header["sigma"] = self.sigma
        if self.encoding == "raw":
            return TensorMessage({"media": self.media}, header).to_bytes()
        encoded = encode_media(self.media.cpu(), self.encoding)
        header |= {"encoding": self.encoding, "shape": list(encoded.shape)}
        return TensorMessage({"media": encoded.data, "sizes": encoded.sizes}, header).to_bytes()

    @classmethod
    def from_bytes(
        cls, body: bytes, *, accepted: Sequence[Encoding] = ("raw",), largest: int = LARGEST_MEDIA
    ) -> ScoreRequest:
        """What was sent; nothing of it is trusted.

        Raises:
            ValueError: saying what is wrong with it.
        """
        message = TensorMessage.from_bytes(body)
        header = message.header
        encoding = header.get("encoding", "raw")
        if encoding not in ENCODINGS or encoding not in accepted:
            raise ValueError(f"has media as {encoding!r:.40}; accepted here: {', '.join(accepted)}")
        media = _media(message, cast("Encoding", encoding), largest)
        prompts = _prompts(header.get("prompts"), len(media))
        return cls(
            media=media,
            prompts=prompts,
            metadata=_metadata(header.get("metadata"), len(media)),
            request_id=_request_id(header.get("request_id", "")),
            sigma=_sigma(header.get("sigma")),
            encoding=cast("Encoding", encoding),
        )


@dataclass(frozen=True, slots=True)
class ScoreReply:
    """The scores of a request and who gave them."""

    output: RewardOutput  # on the CPU; rows that are not valid hold NaN and have an error
    request_id: str = ""
    card_hash: str = ""  # of the reward that scored; another hash is another reward

    def to_bytes(self) -> bytes:
        """As it is sent."""
        output = self.output
        valid = torch.ones(len(output.scores), dtype=torch.bool) if output.valid is None else output.valid
        tensors = {"scores": output.scores.float(), "valid": valid}
        tensors |= {f"{_PART}{name}": values.float() for name, values in output.components.items()}
        errors = {str(row): why[:_LONGEST_ERROR] for row, why in output.errors.items()}
        header = {"request_id": self.request_id, "card_hash": self.card_hash, "errors": errors}
        return TensorMessage(tensors, header).to_bytes()

    @classmethod
    def from_bytes(cls, body: bytes, *, rows: int) -> ScoreReply:
        """The answer to a request of ``rows`` pictures. A row with a score that is no finite number is not valid.

        Raises:
            ValueError: if it is none: no safetensors, no scores, or not ``rows`` of them.
        """
        message = TensorMessage.from_bytes(body)
        tensors = dict(message.tensors)
        for name, dtype in (("scores", torch.float32), ("valid", torch.bool)):
            if name not in tensors:
                raise ValueError(f"has no tensor {name!r}, only {sorted(tensors)}")
            _check(name, tensors[name], dtype, rows)
        scores, valid = tensors.pop("scores"), tensors.pop("valid")
        components: dict[str, Tensor] = {}
        for name, values in tensors.items():
            _check(name, values, torch.float32, rows)
            components[name.removeprefix(_PART)] = values
        errors = _errors(message.header.get("errors"), rows)
        output = checked("server", RewardOutput(scores, components, valid, errors), range(rows))
        given = {name: message.header.get(name, "") for name in ("request_id", "card_hash")}
        if not all(isinstance(value, str) for value in given.values()):
            raise ValueError(f"has a header with {given!r:.100}, which should be texts")
        return cls(output, request_id=str(given["request_id"]), card_hash=str(given["card_hash"]))


def _check(name: str, values: Tensor, dtype: torch.dtype, rows: int) -> None:
    if values.dtype != dtype or values.shape != (rows,):
        raise ValueError(
            f"has {name!r} of type {values.dtype} and shape {tuple(values.shape)}, not {str(dtype)[6:]} [{rows}]"
        )


def _errors(given: object, rows: int) -> dict[int, str]:
    if given is None:
        return {}
    known = {str(row): row for row in range(rows)}
    if not isinstance(given, dict) or not all(key in known and isinstance(why, str) for key, why in given.items()):
        raise ValueError(f"has errors {given!r:.100}, which should be texts by row")
    return {known[key]: why[:_LONGEST_ERROR] for key, why in given.items()}


def _media(message: TensorMessage, encoding: Encoding, largest: int) -> Tensor:
    media = message.tensors.get("media")
    if media is None:
        raise ValueError(f"has no tensor 'media', only {sorted(message.tensors)[:10]}")
    if encoding != "raw":
        sizes, shape = message.tensors.get("sizes"), message.header.get("shape")
        if sizes is None or not isinstance(shape, list) or not all(_is_side(side) for side in shape):
            raise ValueError(f"has {encoding} media without the tensor 'sizes' or the header's 'shape'")
        return decode_media(EncodedMedia(media, sizes, tuple(shape)), encoding, largest=largest)
    shape = tuple(media.shape)
    if media.dtype != torch.uint8 or len(shape) not in (4, 5) or shape[-3] != 3 or min(shape) < 1:
        raise ValueError(
            f"has media of type {media.dtype} and shape {list(shape)}, neither uint8 [N, 3, H, W] nor [N, F, 3, H, W]"
        )
    if media.numel() > largest:
        raise ValueError(f"has {media.numel()} bytes of media; at most {largest} are read; send fewer at once")
    return media


def _is_side(side: object) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 0 < side < 1 << 20


def _prompts(given: object, rows: int) -> tuple[str, ...]:
    if not isinstance(given, list) or len(given) != rows:
        raise ValueError(f"has {rows} media and prompts {given!r:.100}; give a list of one text each")
    for prompt in given:
        if not isinstance(prompt, str) or len(prompt) > _LONGEST_PROMPT or not _is_unicode(prompt):
            raise ValueError(f"has a prompt {prompt!r:.100} that is no text of at most {_LONGEST_PROMPT} characters")
    return tuple(given)


def _metadata(given: object, rows: int) -> tuple[Mapping[str, object], ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != rows or not all(isinstance(row, dict) for row in given):
        raise ValueError(f"has {rows} media and metadata {given!r:.100}; give a list of one mapping each")
    if not _is_unicode(json.dumps(given, ensure_ascii=False)):
        raise ValueError("has metadata with a text that is no Unicode")
    return tuple(cast("list[dict[str, Any]]", given))


def _request_id(given: object) -> str:
    if not isinstance(given, str) or len(given) > _LONGEST_ID or not given.isprintable():
        raise ValueError(f"has request_id {given!r:.100}, no printable text of at most {_LONGEST_ID} characters")
    return given


def _sigma(given: object) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1e9:
        raise ValueError(f"has sigma {given!r:.40}, which names a noise and so is no less than 0")
    return float(given)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can also spell halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
