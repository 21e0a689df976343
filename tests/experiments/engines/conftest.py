"""A Ray cluster for the tests that needn't start Ray themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from ray._private import utils
from ray.cluster_utils import Cluster
from shared import Shared


@pytest.fixture(scope="session")
def _clusters() -> Iterator[Shared[Cluster]]:
    class Running:
        def __enter__(self) -> Cluster:
            with patch.object(utils, "write_ray_address"):  # or others on this machine would join it
                self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
            return self.cluster

        def __exit__(self, *exception: object) -> None:
            self.cluster.shutdown()

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
