"""A Ray cluster of this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from ray._private import utils
from ray.cluster_utils import Cluster

from experiments.engines.ray_internals import NO_PRESTART, without_helpers


class Running:
    """A cluster of one node of two processors, as a run starts Ray; its workers are forked.

    Args:
        forked: The folder of commands that they are forked by.
    """

    def __init__(self, forked: Path) -> None:
        self.forked = forked

    def __enter__(self) -> Cluster:
        options = {"num_cpus": 2, "include_dashboard": False, "_system_config": NO_PRESTART}
        with (
            patch.object(utils, "write_ray_address"),  # or others on this machine would join it
            patch.object(sys, "executable", str(self.forked / "python")),
            without_helpers({"include_dashboard": False, "log_to_driver": False}),
        ):
            self.cluster = Cluster(initialize_head=True, head_node_args=options)
        return self.cluster

    def __exit__(self, *exception: object) -> None:
        self.cluster.shutdown()
