"""What a reward needs beside its code: modules, files of weights, a server; what is missing, and where to put it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from difalign.build.cards import Found, RewardCard
from difalign.build.surroundings import hub_cache
from difalign.core.user_path import user_path

_CHUNK = 1 << 22  # bytes read at once
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PATIENCE = 1.0  # seconds for a server to take a connection


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of a reward's weights, as it was found, or why it was not."""

    name: str
    path: Path | None
    problem: str | None = None  # None = as the card says
    sha256: str | None = None  # of the content
    stated: bool = False  # whether there was a hash to compare with


def obstacles(found: Found[RewardCard], environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Why a reward cannot score on this machine without a download, each with its remedy; empty where it can."""
    missing = [module for module in found.card.requires if not is_installed(module)]
    if missing:
        yield f"{', '.join(missing)} is not installed: pip install 'difalign[rewards]'"
    lacking = [file for file in expected_files(found, environ) if file.path is None]
    if lacking:
        yield lacking[0].problem or ""
    servers = addresses(found.card)
    for url in servers:
        if not _listens(url):
            yield f"no server listens at {url}: start one, and give its address as options.url"
    if not servers:  # a server has its models with itself
        for option, value in found.card.options.items():
            if isinstance(value, str) and _HUB_ID.fullmatch(value) and not _is_at_hand(value, environ):
                yield (
                    f"{value}, which options.{option} names, is not in {hub_cache(environ)}: where there is a network, "
                    f"`hf download {value}`, or give a folder"
                )


def is_installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package of a submodule
        return False


def addresses(card: RewardCard) -> tuple[str, ...]:
    """The servers that a card's options name."""
    texts = [value for value in card.options.values() if isinstance(value, str)]
    return tuple(word for text in texts for word in text.replace(",", " ").split() if _is_address(word))


def expected_files(found: Found[RewardCard], environ: Mapping[str, str] = os.environ) -> tuple[WeightFile, ...]:
    """The files that a card's weights consist of, found or with the reason why not; none for a card without weights.

    A card of one checkpoint names its file; the others are folders as transformers writes them, known by their
    configuration and a file of weights.
    """
    card, source = found.card, found.weights()
    if source is None:
        return ()
    folder = source if isinstance(source, Path) else _snapshot(source, card.revision, environ)
    if folder is None or not folder.is_dir():
        name = card.file or "config.json and its weights"
        return (WeightFile(name, None, _remedy(found, name, environ)),)
    if card.file is not None:
        return (_file(found, folder, card.file, environ),)
    weights = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    names = ("config.json", *(weights or ("model.safetensors",)))
    return tuple(_file(found, folder, name, environ) for name in names)


def verify_files(found: Found[RewardCard], environ: Mapping[str, str] = os.environ) -> tuple[WeightFile, ...]:
    """The expected files with the hash of what they hold, compared with the card's, or with the hub's own.

    The hub's cache keeps a large file under the SHA-256 that its repository states, so that a damaged download shows
    even where the card states none.
    """
    return tuple(_verified(found.card, file) for file in expected_files(found, environ))


def _verified(card: RewardCard, file: WeightFile) -> WeightFile:
    if file.path is None:
        return file
    content = sha256_of(file.path)
    blob = file.path.resolve().name
    stated = card.sha256 if file.name == card.file else None
    by = "the card"
    if stated is None and len(blob) == len(content) and set(blob) <= set("0123456789abcdef"):
        stated, by = blob, "the hub"
    problem = None
    if stated is not None and stated != content:
        problem = f"its SHA-256 is {content}, and {by} states {stated}: fetch it again, or correct the card"
    return WeightFile(file.name, file.path, problem, content, stated is not None)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _file(found: Found[RewardCard], folder: Path, name: str, environ: Mapping[str, str]) -> WeightFile:
    path = folder / name
    return WeightFile(name, path) if path.is_file() else WeightFile(name, None, _remedy(found, name, environ))


def _remedy(found: Found[RewardCard], name: str, environ: Mapping[str, str]) -> str:
    card = found.card
    if card.hub_id is None:
        return f"{name} is not in {found.weights()}: put it there, or correct `path` in {found.file}"
    at = f" --revision {card.revision}" if card.revision is not None else ""
    wanted = f" {card.file}" if card.file is not None else ""
    return (
        f"{card.hub_id} ({name}) is not in {hub_cache(environ)}: where there is a network, "
        f"`hf download {card.hub_id}{wanted}{at}`, and copy the folder "
        f"models--{card.hub_id.replace('/', '--')} there"
    )


def _snapshot(hub_id: str, revision: str | None, environ: Mapping[str, str]) -> Path | None:
    """The folder of a repository in the hub's cache, as huggingface_hub lays it out."""
    repository = hub_cache(environ) / f"models--{hub_id.replace('/', '--')}"
    wanted = revision or "main"
    reference = repository / "refs" / wanted
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


def _is_at_hand(source: str, environ: Mapping[str, str]) -> bool:
    return user_path(source).is_dir() or _snapshot(source, None, environ) is not None


def _is_address(word: str) -> bool:
    return word.startswith(("http://", "https://"))


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_PATIENCE):
            return True
    except (OSError, ValueError):
        return False
