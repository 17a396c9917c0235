"""GenEval's metadata: the prompt files that ship are read, and what is malformed is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from difalign.build.definitions import find_file
from difalign.core.prompts import read_prompts
from difalign.reward_models.geneval_clauses import CLASSES, Clause, Task, read_task


@pytest.mark.parametrize("file", ["objects_train.jsonl", "objects_heldout.jsonl"])
def test_shipped_prompts_are_tasks(file: str):
    prompts = read_prompts(find_file(f"samples/prompts/{file}"))
    tasks = [read_task(prompt.text, prompt.metadata) for prompt in prompts]
    assert [task.kind for task in tasks] == [prompt.kind for prompt in prompts]
    kinds = {"two_object", "counting", "colors", "position", "color_attr"}  # Flow-GRPO trains on no single objects
    assert kinds <= {task.tag for task in tasks} <= kinds | {"single_object"}


def test_there_are_eighty_classes():
    assert len(set(CLASSES)) == 80
    assert (CLASSES[0], CLASSES[64], CLASSES[79]) == ("person", "computer mouse", "toothbrush")


def test_clauses_are_read():
    said = {
        "tag": "position",
        "include": [
            {"class": "spoon", "count": 1, "color": "red"},
            {"class": "bottle", "count": 2, "position": ["above", 0]},
        ],
        "exclude": [{"class": "spoon", "count": 2}],
        "something": "else",
    }
    spoon, bottles = Clause("spoon", 1, "red"), Clause("bottle", 2, None, ("above", 0))
    assert read_task("a prompt", said) == Task("position", (spoon, bottles), (Clause("spoon", 2),))


SPOON = {"class": "spoon", "count": 1}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (None, "tag = None"),
        ({"tag": "colors"}, "include = None: must be a list"),
        ({"tag": "colors", "include": []}, "must name at least one"),
        ({"tag": "colors", "include": "spoon"}, "include = 'spoon': must be a list"),
        ({"tag": "", "include": [SPOON]}, "tag = ''"),
        ({"tag": "colors", "include": [{"class": "unicorn", "count": 1}]}, r"include\[0\].class = 'unicorn'"),
        ({"tag": "colors", "include": [{"class": "spoon", "count": 0}]}, "count = 0"),
        ({"tag": "colors", "include": [{"class": "spoon", "count": True}]}, "count = True"),
        ({"tag": "colors", "include": [SPOON | {"color": "mauve"}]}, "color = 'mauve': must be one of red"),
        ({"tag": "colors", "include": [SPOON | {"colour": "red"}]}, "must be an object with class"),
        ({"tag": "x", "include": [SPOON | {"position": ["above", 0]}]}, "position = .*earlier object"),
        ({"tag": "x", "include": [SPOON, SPOON | {"position": ["over", 0]}]}, r"include\[1\].position"),
        ({"tag": "x", "include": [SPOON, SPOON | {"position": ["above", -1]}]}, "position"),
        ({"tag": "x", "include": [SPOON], "exclude": [{"class": "spoon"}]}, r"exclude\[0\].count = None"),
    ],
)
def test_what_is_malformed_is_named(said: dict[str, object] | None, reason: str):
    with pytest.raises(ValueError, match=rf"^'a prompt': .*{reason}.*objects_train"):
        read_task("a prompt", said)


def test_prompts_are_checked_without_torch():
    code = "import sys, difalign.reward_models.geneval_clauses; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
