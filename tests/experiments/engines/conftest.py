"""A Ray cluster for the tests that needn't start Ray themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from ray_clusters import Running
from shared import Shared


@pytest.fixture(scope="session")
def _clusters() -> Iterator[Shared[Cluster]]:
    with Shared(Running, lambda cluster: bool(cluster.remaining_processes_alive())) as shared:
        yield shared


@pytest.fixture
def cluster(_clusters: Shared[Cluster]) -> Cluster:
    """A cluster of one node of two processors; a test may add nodes that it takes away again."""
    return _clusters.get()


@pytest.fixture
def on_cluster(cluster: Cluster) -> dict[str, Any]:
    """``backend_config`` of whoever joins the cluster."""
    return {"init_args": {"address": cluster.address}}
