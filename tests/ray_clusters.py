"""A Ray cluster of this machine."""

from __future__ import annotations

from unittest.mock import patch

from ray._private import utils
from ray.cluster_utils import Cluster


class Running:
    """A cluster of one node of two processors."""

    def __enter__(self) -> Cluster:
        with patch.object(utils, "write_ray_address"):  # or others on this machine would join it
            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        return self.cluster

    def __exit__(self, *exception: object) -> None:
        self.cluster.shutdown()
