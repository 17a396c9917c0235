"""Published checkpoints: found, verified, read without running what is in them, and loaded whole or not at all."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_SHOWN = 6  # keys named in a message
_BLOCK = 2**24  # bytes read at a time
# Buffers that older releases of transformers saved and newer ones count out anew: 0, 1, 2, ...; offsets in a window.
_COUNTED = ("position_ids", "relative_position_index")


def find_checkpoint(source: str | Path, *, file: str, sha256: str | None = None, revision: str | None = None) -> Path:
    """The path of a checkpoint file in a folder or a repository of the model hub, fetched if need be.

    Args:
        source: a folder, or an id of the model hub.
        file: its name in there.
        sha256: of its content, 64 hexadecimal digits; None = not verified.
        revision: of a hub repository.

    Raises:
        ValueError: if there is no such folder or file, it can neither be found in the cache nor fetched, or its hash is
            another.
    """
    if is_folder(source):
        path = Path(source) / file
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file; put {file} into {source}")
    else:
        path = _from_hub(str(source), file, revision)
    if sha256 is not None:
        _check_hash(path, sha256)
    return path


def is_folder(source: str | Path) -> bool:
    """Whether the source is a local folder and not an id of the hub.

    Raises:
        ValueError: if it can only be meant as a folder, and there is none.
    """
    folder = Path(source)
    if folder.is_dir():
        return True
    if isinstance(source, Path) or folder.is_absolute() or str(source).startswith("."):
        raise ValueError(f"{source}: there is no such folder; give the folder that holds the weights")
    return False


def check_model_type(source: str | Path, model_type: str, *, class_name: str) -> None:
    """Refuse a folder that is missing or holds another model, in words; a hub id is left to the hub.

    Raises:
        ValueError: naming what was found.
    """
    if not is_folder(source):
        return
    try:
        kind = json.loads((Path(source) / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise ValueError(
            f"{source}: has no readable config.json; give a folder that {class_name}.save_pretrained wrote"
        ) from None
    if kind != model_type:
        raise ValueError(
            f"{source}: holds a model of type {kind!r}, not a {class_name}; give the folder of a {class_name}"
        )


def load_pretrained(model_class: Any, source: str | Path, *, dtype: torch.dtype, revision: str | None) -> Any:
    """A model of transformers in ``dtype``, whatever its file holds, with every weight from the file.

    Raises:
        ValueError: if the weights cannot be had, or are those of another model.
    """
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        model, info = model_class.from_pretrained(source, dtype=dtype, output_loading_info=True, **at)
    except OSError as error:
        raise ValueError(missing_repository(source, revision, error)) from error
    except RuntimeError as error:  # transformers' error for weights of other shapes
        raise ValueError(f"{source}: is a checkpoint of another model than its config.json says: {error}") from error
    _refuse_other_keys(
        str(source),
        missing=info["missing_keys"],
        unknown={key for key in info["unexpected_keys"] if not key.endswith(_COUNTED)},
        reshaped=info["mismatched_keys"],
    )
    return model


def load_processor(processor_class: Any, source: str | Path, *, revision: str | None) -> Any:
    """An image processor of transformers.

    Raises:
        ValueError: if its files cannot be had.
    """
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        return processor_class.from_pretrained(source, **at)
    except OSError as error:
        raise ValueError(missing_repository(source, revision, error)) from error


def load_tokenizer(tokenizer_class: Any, source: str | Path, *, revision: str | None) -> Any:
    """A tokenizer of transformers that knows words.

    Raises:
        ValueError: if its files cannot be had; transformers makes a tokenizer without a single word then.
    """
    tokenizer = load_processor(tokenizer_class, source, revision=revision)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(missing_repository(source, revision, OSError("there are no words in its tokenizer")))
    return tokenizer


def missing_repository(source: str | Path, revision: str | None, error: Exception) -> str:
    """What to do where a repository of transformers' files is neither in the cache nor to be fetched."""
    at = "" if revision is None else f" --revision {revision}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"{source}: could not be loaded ({reason}). Where there is a network, run `hf download {source}{at}` and "
        f"bring the cache folder here (HF_HOME names it), or `hf download {source}{at} --local-dir FOLDER` and "
        "give path: FOLDER in the card in the place of hub_id"
    )


def read_state_dict(path: Path, *, within: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file, mapped into memory where the format allows it.

    Args:
        path: of the file; ``.safetensors`` says which format.
        within: the key of a PyTorch file's mapping that holds the tensors; None = the mapping itself. Safetensors have
            no mappings in mappings.

    Raises:
        ValueError: if the file holds more than tensors and plain containers, or no tensors there.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: is no whole safetensors file ({error}); fetch it again") from error
    content: Any = _read_torch(path)
    if within is not None and isinstance(content, Mapping) and within in content:
        content = content[within]
    elif within is not None:
        raise ValueError(f"{path}: has no entry {within!r}, so it is a checkpoint of another model")
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: holds no mapping of names to tensors, so it is a checkpoint of another model")
    return dict(content)


def load_strictly(
    network: nn.Module, state: Mapping[str, Tensor], *, source: str, rebuilt: Mapping[str, Tensor] | None = None
) -> None:
    """Give a network made on the meta device, or elsewhere, the tensors of ``state``: all of them and no others.

    Args:
        network: its parameters are replaced, not written to.
        state: tensors by the network's own names.
        source: named in errors.
        rebuilt: buffers that checkpoints do not hold, by name; they can be computed.

    Raises:
        ValueError: if a name is missing or unknown, or a shape is another, naming them.
    """
    own = network.state_dict()
    _refuse_other_keys(
        source,
        missing=own.keys() - state.keys(),
        unknown=state.keys() - own.keys(),
        reshaped=[
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own.keys() & state.keys()
            if state[key].shape != own[key].shape
        ],
    )
    network.load_state_dict(dict(state), strict=True, assign=True)
    for name, buffer in (rebuilt or {}).items():
        owner, _, last = name.rpartition(".")
        setattr(network.get_submodule(owner), last, buffer)
    left = [name for name, tensor in [*network.named_parameters(), *network.named_buffers()] if tensor.is_meta]
    assert not left, left


def _refuse_other_keys(source: str, *, missing: Any, unknown: Any, reshaped: Any) -> None:
    found = {"has no": missing, "has unknown": unknown, "has in other shapes": reshaped}
    said = [f"{what} {_some(keys)}" for what, keys in found.items() if keys]
    if said:
        raise ValueError(f"{source}: is a checkpoint of another model, or not a whole one: it {'; it '.join(said)}")


def _some(keys: Any) -> str:
    names = sorted(str(key) for key in keys)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _from_hub(repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (OSError, ValueError) as error:  # no network, offline mode, no such repository or file, a malformed id
        at = "" if revision is None else f" --revision {revision}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{repository}: {file} (revision {revision or 'main'}) is not in the cache and could not be fetched "
            f"({reason}). Where there is a network, run `hf download {repository} {file}{at}` and bring the cache "
            "folder here (HF_HOME names it), or put the file into a folder of your own and give path: FOLDER in the "
            "card in the place of hub_id"
        ) from error


def _check_hash(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != sha256.lower():
        raise ValueError(
            f"{path}: its SHA-256 is {digest.hexdigest()}, but the card says {sha256.lower()}; it is another file or "
            "was cut short: fetch it again, or set sha256 in the card if you trust it"
        )


def _read_torch(path: Path) -> Any:
    # Files written before PyTorch 1.6 are no zip archives and cannot be mapped into memory.
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Detected pickle protocol"
            )  # what it cannot read is an error below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path}: holds something else than tensors and plain containers, or was cut short, and is not read, since "
            "reading it could run whatever its author put into it. If you trust its origin, convert it once yourself: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=False)['state_dict'], 'FILE.safetensors')"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{path}: is no whole PyTorch file ({error}); fetch it again") from error
