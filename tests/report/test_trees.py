"""Drawings of trees: every sample has its place, every move is drawn, and nothing lies on anything else."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from difalign.report.diagnostics import Diagnostics, Leaf, Move, PromptTrees, Tree
from difalign.report.log import RunLog
from difalign.report.run_folder import StoredDiagnostics, read_run
from difalign.report.trees import Drawing, Forest, draw_forests
from tests.report.fake_diagnostics import SIGMA, branched, leaf_pictures, seen_at, walk


def drawn(*trees: Tree, noises: int = 1) -> Drawing:
    seen = Diagnostics(0, SIGMA, (), (PromptTrees("p", 0, noises, trees),))
    (drawing,) = draw_forests(StoredDiagnostics(seen, None)).prompts
    return drawing


def binary(depth: int) -> Tree:
    """Every row forks in two at every step."""
    moves, leaves = [], []
    for step in range(depth):
        first, below = 2**step - 1, 2 ** (step + 1) - 1
        for row in range(2 ** (step + 1)):
            moves.append(Move(step, first + row // 2, below + row, True, True, 0.0, (-1.0) ** row))
    for row in range(2**depth):
        leaves.append(Leaf(2**depth - 1 + row, row, {"total": 0.0}, (-1.0) ** row))
    return Tree(tuple(moves), tuple(leaves))


SHAPES = {
    "branch": (branched((0, 1, 2), children=6),),
    "star": tuple(walk(0.1 * n, picture=n) for n in range(24)),
    "split": (branched((1,), children=4),),
    "two splits": (branched((1,), children=4), branched((1,), children=4, first_picture=4)),
    "cascade": (binary(4),),
    "one walk": (walk(0.0, picture=0),),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_sample_and_every_move_has_its_place(shape: str) -> None:
    trees = SHAPES[shape]
    drawing = drawn(*trees, noises=len(trees))
    assert len(drawing.leaves) == sum(len(tree.leaves) for tree in trees)
    places = sorted((leaf.top, leaf.left) for leaf in drawing.leaves)
    for (top, left), (other, right) in pairwise(places):
        assert other - top >= drawing.tile + 26 or (other == top and right - left >= drawing.tile)
    assert all(leaf.left + drawing.tile <= drawing.width for leaf in drawing.leaves)
    assert all(leaf.top + drawing.tile + 26 <= drawing.height for leaf in drawing.leaves)
    moves = sum(stroke.path.count("M") for stroke in drawing.strokes if stroke.style not in ("lead", "start"))
    assert moves == sum(len(tree.moves) for tree in trees)
    last = re.compile(r"[H ](-?[\d.]+)(?: -?[\d.]+)?(?=M|$)")  # where a move ends, across
    ends = [float(x) for stroke in drawing.strokes for x in last.findall(stroke.path)]
    assert max(ends) <= min(leaf.left for leaf in drawing.leaves) + 0.1
    assert drawing.width < 480


def test_siblings_lie_side_by_side_and_later_branches_below() -> None:
    tree = branched((0, 1, 2), children=3)
    drawing = drawn(tree)
    by_node = dict(zip((leaf.node for leaf in tree.leaves), drawing.leaves, strict=True))
    above = {move.child: move for move in tree.moves}
    tops: dict[int, set[float]] = {}
    for end, leaf in by_node.items():
        node = end
        while not above[node].trained:
            node = above[node].parent
        tops.setdefault(above[node].step, set()).add(leaf.top)
    assert [len(tops[step]) for step in (0, 1, 2)] == [1, 1, 1]
    assert max(tops[0]) < max(tops[1]) < max(tops[2])


def test_lines_are_dashed_without_noise_and_coloured_where_trained() -> None:
    strokes = {stroke.style: stroke.path.count("M") for stroke in drawn(branched((0, 1), children=3)).strokes}
    assert strokes["noisy trained up"] == strokes["noisy trained down"] == strokes["noisy trained even"] == 2
    assert strokes["smooth"] == 1 + 3 * 3 + 3 * 2  # the trunk, and the tails
    assert strokes["lead"] == 6
    plain = {stroke.style for stroke in drawn(walk(0.2, picture=0)).strokes}
    assert plain == {"noisy trained up", "noisy", "lead"}


def test_numbers_say_what_colours_say() -> None:
    low, middle, high = drawn(branched((0,), children=3)).leaves
    assert (low.reward, low.advantage, low.tone) == ("0.40", "−1.00", "down")
    assert (middle.advantage, middle.tone) == ("0.00", "even")
    assert (high.advantage, high.tone) == ("+1.00", "up")
    assert high.details == "total 0.60, strict 0.00; advantage +1.00"


def test_what_was_left_out_is_faint_and_said() -> None:
    tree = branched((0,), children=3)
    forest = Forest(0, (drawn(replace(tree, leaves=(*tree.leaves[:2], replace(tree.leaves[2], kept=False)))),))
    assert [leaf.kept for leaf in forest.prompts[0].leaves] == [True, True, False]
    assert forest.prompts[0].leaves[2].details.endswith("; left out")
    assert forest.selected
    assert not Forest(0, (drawn(tree),)).selected


@pytest.mark.parametrize(
    ("trees", "noises", "caption"),
    [(1, 1, "1 start noise, 3 samples"), (1, 4, "1 of 4 start noises, 3 samples"), (2, 2, "2 start noises, 6 samples")],
)
def test_caption_counts(trees: int, noises: int, caption: str) -> None:
    assert drawn(*[branched((0,), children=3)] * trees, noises=noises).caption == caption


@pytest.mark.parametrize("steps", [4, 10, 50])
def test_levels_on_the_axis_keep_their_distance(steps: int) -> None:
    sigma = tuple(np.linspace(1, 0, steps + 1).tolist())
    seen = Diagnostics(0, sigma, (), (PromptTrees("p", 0, 1, (walk(0.0, picture=0, steps=steps),)),))
    ticks = draw_forests(StoredDiagnostics(seen, None)).prompts[0].ticks
    assert ticks[0].label == "1.00"
    assert ticks[-1].label == "0"
    assert all(second.percent - first.percent >= 29.9 for first, second in pairwise(ticks))
    assert len(ticks) >= 3


def test_pictures_are_those_of_their_leaves(tmp_path: Path) -> None:
    seen = seen_at(3)
    pictures = leaf_pictures(seen)
    RunLog(tmp_path).write_diagnostics(seen, pictures)
    forest = draw_forests(read_run(tmp_path).diagnostics[0])
    assert forest.rollout == 3
    sources = [leaf.picture.source for drawing in forest.prompts for leaf in drawing.leaves if leaf.picture]
    assert len(set(sources)) == 9 + 8
    (tmp_path / "diagnostics" / "000003.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="not a readable grid"):
        draw_forests(read_run(tmp_path).diagnostics[0])
