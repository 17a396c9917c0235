"""Is a diffusers folder whole? Read off its index, its configurations and the first bytes of its weights.

A loader finds out as well, after seconds or minutes and in words of its own. Here it takes milliseconds and no library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

INDEX_FILE = "model_index.json"

_CONFIGS = {"config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json"}
_MODEL_CONFIG = "config.json"  # only models have it, and only models have weights
_TOKENIZER_CONFIG = "tokenizer_config.json"
_NO_VOCABULARY = {_TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"}
_WEIGHTS = ("*.safetensors", "*.bin")
_SHARDS = ("*.safetensors.index.json", "*.bin.index.json")
_LFS_POINTER = b"version https://git-lfs"
_LONGEST_HEADER = 100_000_000  # bytes; safetensors refuses a longer one


def pipeline_class(folder: Path) -> str | None:
    """The class that a folder's index names, or None where it names none."""
    index = _read_json(folder / INDEX_FILE)
    return str(index["_class_name"]) if isinstance(index, Mapping) and "_class_name" in index else None


def folder_problems(folder: Path) -> Iterator[str]:
    """What a diffusers folder lacks, one clause each that names the file and the remedy."""
    index = _read_json(folder / INDEX_FILE)
    if index is None:
        yield f"{folder / INDEX_FILE} is not JSON; save the pipeline again with save_pretrained"
        return
    if not isinstance(index, Mapping) or "_class_name" not in index:
        yield f"{folder / INDEX_FILE} names no _class_name; save the pipeline again with save_pretrained"
        return
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and None not in entry:
            yield from _part_problems(folder / name, name, entry[1])


def _part_problems(part: Path, name: str, class_name: object) -> Iterator[str]:
    what = f"its part {name!r} ({class_name})"
    if not part.is_dir():
        yield f"{what} is missing: there is no folder {part}; copy it there, or save the pipeline again"
        return
    configs = sorted(_CONFIGS & {path.name for path in part.iterdir()})
    if not configs:
        yield f"{what} has no configuration in {part}, neither {' nor '.join(sorted(_CONFIGS))}; copy it there"
    for config in configs:
        if not isinstance(_read_json(part / config), Mapping):
            yield f"{what}: {part / config} is not JSON; copy it again"
    if _MODEL_CONFIG in configs:
        yield from (f"{what}: {problem}" for problem in _weight_problems(part))
    elif _TOKENIZER_CONFIG in configs and not {path.name for path in part.iterdir()} - _NO_VOCABULARY:
        yield f"{what} has no vocabulary in {part}, such as tokenizer.json; copy it there"


def _weight_problems(part: Path) -> Iterator[str]:
    files = {path for pattern in _WEIGHTS for path in part.glob(pattern)}
    for index_file in (path for pattern in _SHARDS for path in part.glob(pattern)):
        index = _read_json(index_file)
        shards = index.get("weight_map") if isinstance(index, Mapping) else None
        if not isinstance(shards, Mapping):
            yield f"{index_file} is no index of shards; copy it again"
            continue
        for shard in sorted({str(name) for name in shards.values()} - {path.name for path in files}):
            yield f"there is no {part / shard}, which {index_file.name} names; copy it there"
    if not files:
        yield f"there are no weights in {part}; copy its .safetensors file there"
    for path in sorted(files):
        if damage := _damage(path):
            yield f"{path} {damage}"


def _damage(path: Path) -> str | None:
    """What is wrong with a file of weights, as far as its size and its first bytes tell."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(max(len(_LFS_POINTER), 8))
        if begin.startswith(_LFS_POINTER):
            return "is a pointer of Git LFS, not the weights; fetch them with git lfs pull"
        if path.suffix != ".safetensors":
            return "is empty; copy it again" if size == 0 else None
        length = int.from_bytes(begin[:8], "little")
        file.seek(8)
        header = file.read(length) if 0 < length <= min(size, _LONGEST_HEADER) else b""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return f"has {size} bytes and no safetensors header; copy it again"
    return None if size == expected else f"has {size} bytes where its header says {expected}; copy it again"


def _read_json(path: Path) -> object | None:
    """What a file holds, or None where that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
