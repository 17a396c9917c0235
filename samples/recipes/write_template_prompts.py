"""Write prompt lists of the three templates of B2-DiffuRL (arXiv 2503.11240): training prompts, and held-out ones.

    python samples/recipes/write_template_prompts.py --out samples/prompts

Template 1 follows the released lists by their rule: every animal of DDPO is trained with one of three activities and
held out with the other two. The released lists of templates 2 and 3 follow no rule and are not repeated here: what is
written has their structure and their sizes, in words of our own, so that scores on it cannot be compared with theirs.
Running it again writes the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

ANIMALS = Path(__file__).parents[1] / "prompts" / "animals_train.txt"
ACTIVITIES = ("washing dishes", "riding a bike", "playing chess")  # trained with the 1st, 2nd, 3rd third of the animals

FRUITS: dict[str, tuple[str, str]] = {  # the colours that it is trained in
    "apple": ("red", "green"),
    "pear": ("green", "yellow"),
    "plum": ("purple", "yellow"),
    "grape": ("green", "purple"),
    "cherry": ("red", "black"),
    "fig": ("purple", "green"),
    "melon": ("green", "orange"),
    "mango": ("yellow", "red"),
    "peach": ("pink", "orange"),
    "lemon": ("yellow", "green"),
    "orange": ("orange", "green"),
    "banana": ("yellow", "green"),
    "papaya": ("orange", "green"),
    "guava": ("green", "pink"),
    "lychee": ("red", "pink"),
    "currant": ("red", "black"),
    "raspberry": ("red", "black"),
    "strawberry": ("red", "pink"),
    "pineapple": ("yellow", "brown"),
    "coconut": ("brown", "green"),
}
UNLIKELY = ("blue", "white", "grey")  # none of them above: what a fruit is held out in, by turns
UNSEEN: dict[str, str] = {  # held out altogether, each in one colour
    "carrot": "orange",
    "tomato": "red",
    "cucumber": "green",
    "aubergine": "purple",
    "pumpkin": "orange",
    "radish": "pink",
    "cabbage": "purple",
    "spinach": "green",
    "onion": "white",
    "beetroot": "red",
    "potato": "brown",
    "pea": "green",
    "leek": "green",
    "turnip": "white",
    "parsnip": "yellow",
    "celery": "green",
    "garlic": "white",
    "mushroom": "brown",
    "artichoke": "green",
    "kiwi": "brown",
}

THINGS = ("cup", "cat", "ball", "lamp", "book", "bag", "hat", "dog", "box", "vase", "clock")  # 11
PREDICATES = ("on", "under", "behind", "in the front of", "on the left of", "on the right of")  # 6
PLACES = ("table", "bench", "chair", "bed", "shelf", "car", "tree")  # 7


@dataclass(frozen=True, slots=True)
class PromptList:
    """A list as it is written: what its first lines say, and its prompts."""

    comment: tuple[str, ...]
    prompts: tuple[str, ...]

    def text(self) -> str:
        """The file's content."""
        return "\n".join([*(f"# {line}" for line in self.comment), *self.prompts]) + "\n"


def read_animals() -> tuple[str, ...]:
    """DDPO's 45 animals in their order."""
    return tuple(line for line in ANIMALS.read_text().splitlines() if line and not line.startswith("#"))


def template1(animals: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``a {animal} {activity}``, training and held out; the article is always "a", as in the released lists."""
    third = len(animals) // len(ACTIVITIES)
    train, heldout = [], []
    for row, animal in enumerate(animals):
        for number, activity in enumerate(ACTIVITIES):
            (train if number == row // third else heldout).append(f"a {animal} {activity}")
    return tuple(train), tuple(heldout)


def template2() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``{colour} {produce}``: 20 fruits in two colours; the same in an unlikely third, and 20 kinds never trained."""
    train = [f"{colour} {fruit}" for fruit, colours in FRUITS.items() for colour in colours]
    unlikely = [f"{UNLIKELY[row % len(UNLIKELY)]} {fruit}" for row, fruit in enumerate(FRUITS)]
    return tuple(train), (*unlikely, *(f"{colour} {kind}" for kind, colour in UNSEEN.items()))


def template3() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``{thing} {predicate} {place}``: 40 combinations and 30 others of the same words."""
    lists = (THINGS, PREDICATES, PLACES)
    return tuple(combinations(lists, range(40))), tuple(combinations(lists, range(40, 70)))


def combinations(lists: Sequence[Sequence[str]], numbers: Iterable[int]) -> Iterable[str]:
    """For each number one word of every list, the one at the number's remainder.

    The lengths have no common divisor, so that two numbers below their product never give the same words (the Chinese
    remainder theorem), and the words of a list come equally often, give or take one.
    """
    return (" ".join(words[number % len(words)] for words in lists) for number in numbers)


def prompt_lists() -> dict[str, PromptList]:
    """Every list by the name of its file."""
    own = "The structure and the size of B2-DiffuRL's (arXiv 2503.11240); the words are our own, not the released ones."
    first = "Template 1 of B2-DiffuRL (arXiv 2503.11240), by its rule: a {animal} {activity}, DDPO's 45 animals;"
    train, heldout = template1(read_animals())
    lists = {
        "b2_template1_train": PromptList((first, "each is trained with one of three activities."), train),
        "b2_template1_heldout": PromptList((first, "each with the two activities it is not trained with."), heldout),
    }
    said = (
        ("{colour} {produce}: 20 fruits in two colours.", "{colour} {produce}: the 20 fruits in a third, 20 unseen."),
        ("{thing} {predicate} {place}.", "{thing} {predicate} {place}: other combinations of the same words."),
    )
    for number, pair, words in zip((2, 3), (template2(), template3()), said, strict=True):
        for part, prompts, what in zip(("train", "heldout"), pair, words, strict=True):
            lists[f"b2_template{number}_{part}"] = PromptList((f"Template {number}, {what}", own), prompts)
    assert len(set(chain(*(entry.prompts for entry in lists.values())))) == sum(len(e.prompts) for e in lists.values())
    return lists


def main() -> None:
    """Write all lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, entry in prompt_lists().items():
        (out / f"{name}.txt").write_text(entry.text())


if __name__ == "__main__":
    main()
