"""Rewriting a traced graph: what isn't needed goes, batch normalisation is folded, maxima move before neurons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from snnfl.spiking.graph import Affine, GraphNode, MaxPool, Spike


def needed(nodes: Sequence[GraphNode], output: str) -> list[GraphNode]:
    """Drop the nodes that the output doesn't depend on; the output comes last."""
    wanted, kept = {output}, list[GraphNode]()
    for node in reversed(nodes):
        if node.name in wanted:
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def fold_norms(nodes: Sequence[GraphNode]) -> list[GraphNode]:
    """Fold each batch normalisation into the affine layer before it, where nothing else reads that layer.

    Any other stays the affine node of its own that tracing made of it.
    """

    def merge(before: GraphNode, node: GraphNode) -> Iterable[GraphNode]:
        if not isinstance(before, Affine) or not isinstance(node, Affine) or node.op != "scale":
            return
        if node.norm is not None and before.norm is None and before.op != "scale":  # a constant scale has no such state
            yield replace(before, norm=node.norm, epsilon=node.epsilon)

    return _merged(nodes, merge)


def pool_before_spikes(nodes: Sequence[GraphNode]) -> list[GraphNode]:
    """Move each maximum over a spiking layer that nothing else reads in front of that layer."""

    def swap(before: GraphNode, node: GraphNode) -> Iterable[GraphNode]:
        if isinstance(node, MaxPool) and isinstance(before, Spike):
            yield replace(node, inputs=before.inputs)
            yield replace(before, inputs=(node.name,))

    return _merged(nodes, swap)


def _merged(
    nodes: Sequence[GraphNode], merge: Callable[[GraphNode, GraphNode], Iterable[GraphNode]]
) -> list[GraphNode]:
    """Replace pairs of nodes, where nothing but the second reads the first, by what ``merge`` makes of them.

    If it makes nothing they stay. Whoever read the second reads the last of its replacements.
    """
    reads = Counter(name for node in nodes for name in node.inputs)
    found: dict[str, GraphNode] = {}
    renamed: dict[str, str] = {}
    for node in nodes:
        read = reads[node.inputs[0]]
        moved = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        before = found.get(moved.inputs[0])
        made = list(merge(before, moved)) if before is not None and read == 1 else []
        if before is not None and made:
            del found[before.name]
            renamed[node.name] = made[-1].name
        found |= {new.name: new for new in made or [moved]}
    return list(found.values())
