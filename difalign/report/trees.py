"""Trees of samples as drawings: time runs to the right, every row ends at its picture, colour tells the advantage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difalign.report import words
from difalign.report.chart import Tick
from difalign.report.diagnostics import Leaf, Move, PromptTrees, Tree
from difalign.report.embedding import Embedded, embed
from difalign.report.images import read_tiles
from difalign.report.run_folder import StoredDiagnostics

if TYPE_CHECKING:
    from PIL.Image import Image

_TILE, _CELL = 44.0, 52.0  # pixels of a picture, and from one to the next
_TEXT, _GAP = 30.0, 10.0  # below a picture for its two numbers, and between two lines of pictures
_PER_LINE = 6  # pictures of siblings side by side
_LEFT, _TOP, _CHAIN = 20.0, 24.0, 120.0  # margins, and the width that all steps share
_LEAD = 8.0  # from the last column to the pictures
_LANE = 7.0  # between the lines of siblings
_LABEL_WIDTH = 30.0  # of a sigma on the axis
_NEITHER = 5e-3  # an advantage that is shown as 0.00
_START = -1  # what joins several start noises: their prompt


@dataclass(frozen=True, slots=True)
class Stroke:
    """All moves that look alike."""

    style: str  # classes of the style sheet
    path: str


@dataclass(frozen=True, slots=True)
class LeafPicture:
    """A sample and its numbers."""

    left: float
    top: float
    picture: Embedded | None
    reward: str
    advantage: str
    tone: str  # up, down or even
    kept: bool
    details: str  # for the tooltip and for those who do not see it


@dataclass(frozen=True, slots=True)
class Drawing:
    """The trees of one prompt; lengths in pixels."""

    prompt: str
    caption: str
    width: float
    height: float
    ticks: tuple[Tick, ...]  # the percent is a position in pixels here
    strokes: tuple[Stroke, ...]
    forks: tuple[tuple[float, float], ...]
    leaves: tuple[LeafPicture, ...]
    tile: float = _TILE


@dataclass(frozen=True, slots=True)
class Forest:
    """The drawings of one rollout."""

    rollout: int
    prompts: tuple[Drawing, ...]

    @property
    def selected(self) -> bool:
        """Whether some samples were left out."""
        return not all(leaf.kept for drawing in self.prompts for leaf in drawing.leaves)


def draw_forests(stored: StoredDiagnostics) -> Forest:
    """Draw the trees of one rollout.

    Raises:
        ValueError: if their pictures cannot be read.
    """
    seen = stored.diagnostics
    pictures = {} if stored.pictures is None else read_tiles(stored.pictures)
    return Forest(seen.rollout, tuple(_draw(prompt, seen.sigma, pictures) for prompt in seen.prompts if prompt.trees))


class _Layout:
    """Where every node lies: its column is its level, its row that of its leaves.

    Nodes are (tree, node). Leaves that leave one fork by tails of their own are siblings and share lines of pictures;
    what forks again comes below them, so that a trunk steps down and nothing crosses.
    """

    def __init__(self, trees: Sequence[Tree]) -> None:
        self.children: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self.level: dict[tuple[int, int], int] = {}
        self.height: dict[tuple[int, int], float] = {}  # where lines meet, from above
        self.corner: dict[tuple[int, int], tuple[float, float]] = {}  # of a leaf's picture: column, from above
        self.bottom = _TOP
        self.widest = 1
        roots = [(number, 0) for number in range(len(trees))]
        for number, tree in enumerate(trees):
            self.level[number, 0] = 0
            for move in tree.moves:
                self.children.setdefault((number, move.parent), []).append((number, move.child))
                self.level[number, move.child] = move.step + 1
        top = roots[0]
        if len(roots) > 1:
            top = (_START, 0)
            self.children[top], self.level[top] = roots, 0
        self._place(top)

    def fork_of(self, node: tuple[int, int]) -> tuple[int, int]:
        """The node itself, or the first below it that has not one child."""
        while len(self.children.get(node, ())) == 1:
            node = self.children[node][0]
        return node

    def _place(self, node: tuple[int, int]) -> None:
        fork = self.fork_of(node)
        if fork not in self.children:  # a tree of one leaf
            self._siblings([fork])
        else:
            ends = [(child, self.fork_of(child)) for child in self.children[fork]]
            tails = [end for _, end in ends if end not in self.children]
            below = [child for child, end in ends if end in self.children]
            if tails:
                self._siblings(tails)
            for child in below:
                self._place(child)
            meeting = [self.height[end] for end in tails[:_PER_LINE]] or [self.height[child] for child in below]
            self.height[fork] = sum(meeting) / len(meeting)
        self._along(node, fork)
        for child in self.children.get(fork, ()):
            self._along(child, self.fork_of(child))

    def _along(self, node: tuple[int, int], end: tuple[int, int]) -> None:
        """All of a chain lies as high as its end."""
        while node != end:
            self.height[node] = self.height[end]
            node = self.children[node][0]

    def _siblings(self, leaves: Sequence[tuple[int, int]]) -> None:
        """Pictures side by side, line below line; their lanes come in at the middle of the line."""
        for start in range(0, len(leaves), _PER_LINE):
            line = leaves[start : start + _PER_LINE]
            self.widest = max(self.widest, len(line))
            for place, leaf in enumerate(line):
                self.corner[leaf] = (place * _CELL, self.bottom)
                self.height[leaf] = self.bottom + _TILE / 2 + (place - (len(line) - 1) / 2) * _LANE
            self.bottom += _TILE + _TEXT + _GAP


def _draw(prompt: PromptTrees, sigma: Sequence[float], pictures: Mapping[tuple[int, int], Image]) -> Drawing:
    layout = _Layout(prompt.trees)
    joined = len(prompt.trees) > 1
    left = _LEFT + (20.0 if joined else 0.0)
    steps = len(sigma) - 1
    columns = [left + _CHAIN * level / steps for level in range(steps + 1)]
    ends = columns[-1] + _LEAD
    point = {node: (columns[layout.level[node]], height) for node, height in layout.height.items()}
    if joined:
        point[_START, 0] = (_LEFT, layout.height[_START, 0])
    pairs = [(number, move) for number, tree in enumerate(prompt.trees) for move in tree.moves]
    strokes: dict[str, list[str]] = {}
    if joined:
        strokes["start"] = [_curve(point[_START, 0], point[number, 0]) for number in range(len(prompt.trees))]
    for number, move in pairs:
        strokes.setdefault(_style(move), []).append(_curve(point[number, move.parent], point[number, move.child]))
    leaves = [(number, leaf) for number, tree in enumerate(prompt.trees) for leaf in tree.leaves]
    strokes["lead"] = [
        f"M{ends - 10.0:.1f} {layout.height[number, leaf.node]:.1f}H{ends:.1f}" for number, leaf in leaves
    ]
    forks = [node for node, children in layout.children.items() if len(children) > 1]
    forks += [(number, 0) for number in range(len(prompt.trees)) if (number, 0) not in forks]
    return Drawing(
        prompt=prompt.prompt,
        caption=_caption(prompt, len(leaves)),
        width=ends + layout.widest * _CELL - (_CELL - _TILE) + 2.0,  # half a frame's stroke stands out
        height=layout.bottom,
        ticks=tuple(_ticks(columns, sigma)),
        strokes=tuple(Stroke(style, "".join(paths)) for style, paths in strokes.items()),
        forks=tuple(point[node] for node in forks),
        leaves=tuple(
            _leaf(leaf, layout.corner[number, leaf.node], ends, pictures.get((prompt.index, leaf.picture)))
            for number, leaf in leaves
        ),
    )


def _leaf(leaf: Leaf, corner: tuple[float, float], shift: float, image: Image | None) -> LeafPicture:
    advantage = words.signed(leaf.advantage, digits=2)
    scores = ", ".join(f"{name} {words.score(value, digits=2)}" for name, value in leaf.scores.items())
    return LeafPicture(
        left=shift + corner[0],
        top=corner[1],
        picture=None if image is None else embed(image),
        reward=words.score(leaf.scores.get("total"), digits=2),
        advantage=advantage,
        tone=_tone(leaf.advantage),
        kept=leaf.kept,
        details=f"{scores}; advantage {advantage}{'' if leaf.kept else '; left out'}",
    )


def _style(move: Move) -> str:
    noise = "noisy" if move.stochastic else "smooth"
    return f"{noise} trained {_tone(move.advantage)}" if move.trained else noise


def _tone(advantage: float | None) -> str:
    if advantage is None or not abs(advantage) > _NEITHER:
        return "even"
    return "up" if advantage > 0 else "down"


def _curve(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = start, end
    if abs(y - to_y) < 0.05:
        return f"M{x:.1f} {y:.1f}H{to_x:.1f}"
    middle = (x + to_x) / 2
    return f"M{x:.1f} {y:.1f}C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"


def _ticks(columns: Sequence[float], sigma: Sequence[float]) -> Iterator[Tick]:
    """Sigma at every column that has room for it; always at the first and the last."""
    last = columns[0] - _LABEL_WIDTH
    for column, level in zip(columns[:-1], sigma[:-1], strict=True):
        if column - last >= _LABEL_WIDTH and columns[-1] - column >= _LABEL_WIDTH:
            yield Tick(column, f"{level:.2f}")
            last = column + (_LABEL_WIDTH / 3 if column == columns[0] else 0.0)  # the first says what it is
    yield Tick(columns[-1], f"{sigma[-1]:.2g}")


def _caption(prompt: PromptTrees, leaves: int) -> str:
    shown = len(prompt.trees)
    of = f" of {prompt.start_noises}" if shown < prompt.start_noises else ""
    noises = f"{shown}{of} start {'noise' if prompt.start_noises == 1 else 'noises'}"
    return f"{noises}, {words.count(leaves)} {'sample' if leaves == 1 else 'samples'}"
