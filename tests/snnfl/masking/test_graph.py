"""The graph of neighbours: its rule holds where it says so, and it is what it is called."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfl.masking import graph_of, layout


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 400), st.sampled_from([0.05, 0.1, 0.2, 0.3]))
def test_a_layout_keeps_its_promises(clients, tolerance):
    """Counted in the worst case where nothing but that is certain, in the improbable one elsewhere."""
    found = layout(clients, tolerance)
    count = math.ceil(tolerance * clients)
    assert found.neighbours == clients - 1 or found.neighbours % 2 == 0
    assert (found.neighbours + 1) / 2 < found.threshold <= found.neighbours
    if found.neighbours < clients - 1 and count <= 3:
        assert 2 * found.threshold > found.neighbours + 1 + min(count, found.neighbours)
        assert found.threshold <= found.neighbours - (count - 1)
        assert found.neighbours > 2 * count


def test_neighbours_grow_slower_than_clients():
    assert [layout(n, 0.1).neighbours for n in (3, 10, 50, 100, 1000)] == [2, 4, 16, 28, 76]


def test_too_few_clients_are_an_error():
    with pytest.raises(ValueError, match="2 clients: a sum hides nothing of fewer than 3"):
        layout(2, 0.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 30), st.integers(1, 6), st.integers(0, 99))
def test_a_graph_is_regular_and_symmetric(clients, half, seed):
    graph = graph_of(tuple(range(clients)), 2 * half, bytes([seed]))
    assert {len(neighbours) for neighbours in graph.values()} == {min(2 * half, clients - 1)}
    for client, neighbours in graph.items():
        assert client not in neighbours
        assert list(neighbours) == sorted(set(neighbours))
        assert all(client in graph[neighbour] for neighbour in neighbours)


def test_a_graph_hangs_together_without_any_k_minus_one_clients():
    graph = graph_of(tuple(range(9)), 4, bytes(1))
    for gone in itertools.combinations(range(9), 3):
        left = set(range(9)) - set(gone)
        reached = [min(left)]
        for client in reached:
            reached += [n for n in graph[client] if n in left and n not in reached]
        assert set(reached) == left
