"""Who scores, as a digest: the card with the options in effect, and the checkpoint that it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from difalign.build.cards import Found, RewardCard

_SAID_ELSEWHERE = {"name", "summary", "licence"}  # of a card; they score nothing
_CHUNK = 1 << 20  # bytes


def card_hash(found: Found[RewardCard], options: Mapping[str, object]) -> str:
    """SHA-256 of what the scores depend on: two servers of one hash are the same reward.

    A checkpoint on the disk counts with the bytes of its files, one of the model hub with its repository and revision,
    or with the hash that the card states. The code does not count: ``/v1/info`` tells the version beside it.
    """
    content = found.card.model_dump(mode="json", exclude=_SAID_ELSEWHERE | {"options", "path"})
    digest = hashlib.sha256(json.dumps([content, dict(sorted(options.items()))], sort_keys=True).encode())
    weights = found.weights()
    if isinstance(weights, Path):
        for file in sorted(path for path in weights.rglob("*") if path.is_file()):
            digest.update(file.relative_to(weights).as_posix().encode() + b"\0")
            digest.update(_sha256(file))
    return digest.hexdigest()


def _sha256(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
