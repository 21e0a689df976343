"""Who this client is: its workspace and its partition, from Flower's context."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from flwr.app import Context

from snnfl.config import ConfigError, FlatValue, unflatten
from snnfl.protocol import DATA_ROOT
from snnfl.workspace import Workspace, workspace


def run_workspace(context: Context) -> Workspace:
    """Return this process's workspace for the run of a context. Where the data lie is for its node to say.

    Raises:
        ConfigError: If the run's configuration is invalid.
    """
    return _workspace(tuple(context.run_config.items()), context.node_config.get(DATA_ROOT))


@lru_cache(maxsize=1)
def _workspace(run_config: tuple[tuple[str, FlatValue], ...], data_root: FlatValue | None) -> Workspace:
    """Parse once per process: a message would wait for OmegaConf longer than for a small model's training."""
    config = unflatten(dict(run_config))
    if data_root is not None:
        config = replace(config, data=replace(config.data, root=str(data_root)))
    return workspace(config)


def partition_of(context: Context, clients: int) -> int:
    """Return the partition that this node holds.

    Raises:
        ConfigError: If its node configuration names none, or one outside ``0 .. clients - 1``.
    """
    partition = context.node_config.get("partition-id")
    if not isinstance(partition, int) or not 0 <= partition < clients:
        raise ConfigError(
            f"node config partition-id={partition}: expected a whole number from 0 to {clients - 1} "
            f'(data.clients={clients}), as in --node-config "partition-id=0"'
        )
    return partition
