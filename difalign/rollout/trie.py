"""Plans merged on their equal prefixes: what is computed once, in which order, and at what cost.

A *node* of level i is a distinct prefix of i steps; it holds the same number of rows under every root. An *edge* is
one more step: it leads from a node of level i to a node of level i + 1, whose rows are the node's rows times the
step's ``fan_out``. Row r of the child descends from row ``r // fan_out`` of the parent, so all descendants of a row
are contiguous, and everything about who descends from whom is arithmetic on this structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from difalign.core.types import Plan, StepPlan
from difalign.rollout.plans import validate


@dataclass(frozen=True, slots=True)
class Edge:
    """One step out of a node, taken by every row of the node."""

    parent: int  # node index in this level
    child: int  # node index in the next level
    rows: int  # rows a root in the child
    entry: StepPlan


@dataclass(frozen=True, slots=True)
class Level:
    """The nodes that stand before one step of the grid, and the edges that leave them."""

    node_rows: tuple[int, ...]  # rows a root, for every node; nodes in order of their first plan
    edges: tuple[Edge, ...]  # in order of child

    @property
    def rows(self) -> int:
        """Rows a root the network is evaluated on at this step."""
        return sum(self.node_rows)

    @property
    def noise_rows(self) -> int:
        """Rows a root that need noise: those of the widest stochastic edge."""
        return max((edge.rows for edge in self.edges if edge.entry.noise_level > 0.0), default=0)


@dataclass(frozen=True, slots=True)
class Trie:
    """The merged plans; the leaves of plan p are the rows of the p-th node after the last level."""

    levels: tuple[Level, ...]
    leaf_rows: tuple[int, ...]  # leaves a root, for every plan

    @property
    def recorded(self) -> tuple[tuple[int, Edge], ...]:
        """(step, edge) of every recorded edge, by step and then by child: the order edges are stored in."""
        return tuple((i, edge) for i, level in enumerate(self.levels) for edge in level.edges if edge.entry.record)


@dataclass(frozen=True, slots=True)
class RootLayout:
    """What one root leaves behind, as indices local to the root; the same for every root."""

    step: tuple[int, ...]  # one an edge row
    noise_level: tuple[float, ...]  # one an edge row
    descent: tuple[tuple[int, int], ...]  # (edge row, leaf), by edge row
    leaf_plan: tuple[int, ...]  # one a leaf


def merge(plans: Sequence[Plan]) -> Trie:
    """Merge plans into a trie on equal ``StepPlan`` prefixes.

    Raises:
        ValueError: as ``plans.validate``.
    """
    validate(plans)
    levels = []
    nodes: dict[Plan, int] = {(): 1}  # prefix -> rows a root, in order of the first plan that has it
    for i in range(len(plans[0])):
        prefixes = list(dict.fromkeys(plan[: i + 1] for plan in plans))
        positions = {prefix: index for index, prefix in enumerate(nodes)}
        edges = tuple(
            Edge(
                parent=positions[prefix[:-1]],
                child=child,
                rows=nodes[prefix[:-1]] * prefix[-1].fan_out,
                entry=prefix[-1],
            )
            for child, prefix in enumerate(prefixes)
        )
        levels.append(Level(node_rows=tuple(nodes.values()), edges=edges))
        nodes = {prefix: edge.rows for prefix, edge in zip(prefixes, edges, strict=True)}
    return Trie(levels=tuple(levels), leaf_rows=tuple(nodes.values()))


def layout(trie: Trie) -> RootLayout:
    """The edges and leaves of one root: edges by step, then by node, then by row; leaves by plan, then by row."""
    leaf_start = _running_start(trie.leaf_rows)
    plans_through = _plans_through(trie)
    step: list[int] = []
    noise_level: list[float] = []
    descent: list[tuple[int, int]] = []
    for i, edge in trie.recorded:
        for row in range(edge.rows):
            for plan in plans_through[i + 1][edge.child]:
                width = trie.leaf_rows[plan] // edge.rows
                first = leaf_start[plan] + row * width
                descent.extend((len(step), leaf) for leaf in range(first, first + width))
            step.append(i)
            noise_level.append(edge.entry.noise_level)
    leaf_plan = tuple(plan for plan, rows in enumerate(trie.leaf_rows) for _ in range(rows))
    return RootLayout(tuple(step), tuple(noise_level), tuple(descent), leaf_plan)


def count_forwards(plans: Sequence[Plan], num_roots: int = 1) -> int:
    """Rows the network is evaluated on: every row of every distinct prefix once.

    TempFlow-GRPO's (n-1) + K * sum(n-1-i) for branching at every step; guidance doubles the cost of a row but is the
    pipeline's own matter and not counted here.

    Raises:
        ValueError: as ``plans.validate``.
    """
    return num_roots * sum(level.rows for level in merge(plans).levels)


def count_edges(plans: Sequence[Plan], num_roots: int = 1) -> int:
    """Recorded edges, each a row of the objective and one forward of its training pass.

    Raises:
        ValueError: as ``plans.validate``.
    """
    return num_roots * sum(edge.rows for _, edge in merge(plans).recorded)


def count_leaves(plans: Sequence[Plan], num_roots: int = 1) -> int:
    """Final samples, each decoded and scored once.

    Raises:
        ValueError: as ``plans.validate``.
    """
    return num_roots * sum(merge(plans).leaf_rows)


def _plans_through(trie: Trie) -> list[list[list[int]]]:
    """For every level 0..T and every node in it, the plans that pass through the node, in order."""
    through = [[[plan] for plan in range(len(trie.leaf_rows))]]
    for level in reversed(trie.levels):
        nodes: list[list[int]] = [[] for _ in level.node_rows]
        for edge in level.edges:
            nodes[edge.parent].extend(through[-1][edge.child])
        through.append([sorted(plans) for plans in nodes])
    return through[::-1]


def _running_start(sizes: Sequence[int]) -> list[int]:
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return starts[:-1]
