"""Write the prompt lists that presets of large models begin with: objects, as GenEval asks for them, and pictures.

    python samples/recipes/write_preset_prompts.py --out samples/prompts

Both are our own, by rule, so that a preset runs as it is; the released lists that published figures rest on (GenEval's,
Pick-a-Pic's, HPSv2's) are not repeated here. Running it again writes the same files.

``objects_*.jsonl`` has the six kinds, the sentences and the metadata of GenEval (arXiv 2310.11513): ``include`` and
``exclude`` are what its detector is asked. Training prompts are mixed as Flow-GRPO (arXiv 2505.05470) mixes them.
``pictures_*.txt`` combines a medium, a subject and a light.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from write_template_prompts import combinations

# COCO's, under GenEval's names, without those that have no singular and without persons.
OBJECTS = (
    *("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant"),
    *(
        "stop sign",
        "parking meter",
        "bench",
        "bird",
        "cat",
        "dog",
        "horse",
        "sheep",
        "cow",
        "elephant",
        "bear",
        "zebra",
    ),
    *("giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup"),
    *("fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "carrot", "hot dog", "pizza", "donut"),
    *("cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse"),
    *("tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
    *("clock", "vase", "teddy bear", "hair drier", "toothbrush"),
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
NUMBERS = {2: "two", 3: "three", 4: "four"}
POSITIONS = ("left of", "right of", "above", "below")
TRAIN: dict[str, int] = {  # Flow-GRPO: position, counting, attributes, colours, two, single as 7:5:3:1:1:0
    "single_object": 0,
    "two_object": 24,
    "counting": 120,
    "colors": 24,
    "position": 168,
    "color_attr": 72,
}
HELD_OUT: dict[str, int] = dict.fromkeys(TRAIN, 30)

MEDIA = ("a photo of", "an oil painting of", "a watercolour of", "a pencil drawing of", "a woodcut of")  # 5
SUBJECTS = (  # 23
    *(
        "a lighthouse",
        "an old fisherman",
        "a fox in tall grass",
        "a crowded market",
        "a sailing boat",
        "a stone bridge",
    ),
    *("a child with a kite", "a steam train", "a castle on a hill", "a bowl of fruit", "a robot in a garden", "a mill"),
    *("a pair of dancers", "a mountain lake", "a sleeping cat", "a street musician", "a whale", "a glass greenhouse"),
    *("an astronaut on a horse", "a library", "a field of sunflowers", "a dragon", "a harbour"),
)
LIGHTS = (  # 7
    *("at dawn", "at noon", "at dusk", "by moonlight", "in fog", "in heavy rain", "in falling snow"),
)
PICTURES_TRAINED, PICTURES = 240, 300

Prompt = dict[str, object]


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """More than one of it."""
    irregular = {"sheep": "sheep", "knife": "knives", "computer mouse": "computer mice"}
    return irregular.get(noun, f"{noun}{'es' if noun.endswith(('s', 'sh', 'ch', 'x')) else 's'}")


def _single(draw: np.random.Generator) -> Prompt:
    (name,) = draw.choice(OBJECTS, 1)
    return _prompt("single_object", article(name), [_clause(name)])


def _two(draw: np.random.Generator) -> Prompt:
    one, other = draw.choice(OBJECTS, 2, replace=False)
    return _prompt("two_object", f"{article(one)} and {article(other)}", [_clause(one), _clause(other)])


def _counting(draw: np.random.Generator) -> Prompt:
    (name,), number = draw.choice(OBJECTS, 1), int(draw.choice(list(NUMBERS)))
    said = _prompt("counting", f"{NUMBERS[number]} {plural(name)}", [_clause(name, number)])
    return {**said, "exclude": [_clause(name, number + 1)]}


def _colours(draw: np.random.Generator) -> Prompt:
    (name,), (colour,) = draw.choice(OBJECTS, 1), draw.choice(COLOURS, 1)
    return _prompt("colors", article(f"{colour} {name}"), [_clause(name, color=str(colour))])


def _position(draw: np.random.Generator) -> Prompt:
    one, other = draw.choice(OBJECTS, 2, replace=False)
    (where,) = draw.choice(POSITIONS, 1)
    clauses = [_clause(other), _clause(one, position=[str(where), 0])]  # 0: of the clause before
    return _prompt("position", f"{article(one)} {where} {article(other)}", clauses)


def _attributes(draw: np.random.Generator) -> Prompt:
    one, other = draw.choice(OBJECTS, 2, replace=False)
    first, second = draw.choice(COLOURS, 2, replace=False)
    clauses = [_clause(one, color=str(first)), _clause(other, color=str(second))]
    return _prompt("color_attr", f"{article(f'{first} {one}')} and {article(f'{second} {other}')}", clauses)


KINDS: dict[str, Callable[[np.random.Generator], Prompt]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colours,
    "position": _position,
    "color_attr": _attributes,
}


def _clause(name: str, count: int = 1, **more: object) -> dict[str, object]:
    return {"class": str(name), "count": count, **more}


def _prompt(tag: str, what: str, include: list[dict[str, object]]) -> Prompt:
    return {"prompt": f"a photo of {what}", "tag": tag, "include": include}


def object_prompts() -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts, kinds in order; none is in both, and none comes twice."""
    draw = np.random.default_rng(0)
    lists: tuple[list[Prompt], list[Prompt]] = ([], [])
    known: set[object] = set()
    for tag, make in KINDS.items():
        for prompts, number in zip(lists, (TRAIN[tag], HELD_OUT[tag]), strict=True):
            while sum(prompt["tag"] == tag for prompt in prompts) < number:
                prompt = make(draw)
                if prompt["prompt"] not in known:
                    known.add(prompt["prompt"])
                    prompts.append(prompt)
    return lists


def picture_prompts(numbers: Iterable[int]) -> tuple[str, ...]:
    """A medium, a subject and a light for each number."""
    return tuple(combinations((MEDIA, SUBJECTS, LIGHTS), numbers))


def files() -> dict[str, str]:
    """Every file's content by its name."""
    train, heldout = object_prompts()
    lines = {"objects_train.jsonl": map(json.dumps, train), "objects_heldout.jsonl": map(json.dumps, heldout)}
    pictures = picture_prompts(range(PICTURES))
    comment = "# A medium, a subject and a light, by rule; our own, to begin with."
    texts = {
        "pictures_train.txt": [comment, *pictures[:PICTURES_TRAINED]],
        "pictures_heldout.txt": [comment, *pictures[PICTURES_TRAINED:]],
    }
    return {name: "\n".join(content) + "\n" for name, content in {**lines, **texts}.items()}


def main() -> None:
    """Write all lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (out / name).write_text(content)


if __name__ == "__main__":
    main()
