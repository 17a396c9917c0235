"""A search between two stages, which can be written to a file and taken up again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from difalign.search.budget import Cost
from difalign.search.candidates import Candidates
from difalign.search.results import Look


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the rest of a search depends on. Candidates of a prompt stand best first after a look."""

    key: str  # of the search that it belongs to
    step: int  # the next one
    alive: Candidates
    looks: tuple[tuple[Look, ...], ...]  # of every prompt
    cost: Cost
    cut_short: bool = False


def save_state(state: State, path: str | Path) -> None:
    """Write a state as safetensors; the file is whole or absent. Pictures are not part of it."""
    path = Path(path)
    looks = [[asdict(replace(look, pictures=None)) for look in of_prompt] for of_prompt in state.looks]
    alive = state.alive
    described = {
        "key": state.key,
        "step": state.step,
        "prompt": alive.prompt,
        "index": alive.index,
        "seeds": alive.seeds,
        "looks": looks,
        "cost": asdict(state.cost),
        "cut_short": state.cut_short,
    }
    unfinished = path.with_name(f".{path.name}.unfinished")
    save_file({"latents": alive.latents.contiguous().cpu()}, unfinished, metadata={"search": json.dumps(described)})
    os.replace(unfinished, path)


def load_state(path: str | Path) -> State:
    """Read what ``save_state`` wrote; latents on the CPU.

    Raises:
        ValueError: if the file is of something else.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        if "search" not in metadata:
            raise ValueError(f"{path} is not the state of a search; delete it to begin again")
        read: dict[str, Any] = json.loads(metadata["search"])
        latents = file.get_tensor("latents")
    return State(
        key=read["key"],
        step=read["step"],
        alive=Candidates(tuple(read["prompt"]), tuple(read["index"]), tuple(read["seeds"]), latents),
        looks=tuple(tuple(_look(look) for look in of_prompt) for of_prompt in read["looks"]),
        cost=Cost(**read["cost"]),
        cut_short=read["cut_short"],
    )


def _look(read: dict[str, Any]) -> Look:
    return Look(
        step=read["step"],
        sigma=read["sigma"],
        index=tuple(read["index"]),
        scores=tuple(read["scores"]),
        components={name: tuple(values) for name, values in read["components"].items()},
        errors={int(index): why for index, why in read["errors"].items()},
        kept=tuple(read["kept"]),
    )
