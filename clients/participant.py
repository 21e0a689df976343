"""Who this client is and what it is told: its workspace and its partition, from Flower's context, and its orders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from logging import ERROR
from pathlib import Path
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.supercore import log

from snnfl.config import OWN, ConfigError, FlatValue, unflatten
from snnfl.data.own_samples import OwnDataError
from snnfl.protocol import ARRAYS, CONFIG, DATA_PATH, DATA_ROOT, METRICS, SERVER_ROUND, SIMULATED
from snnfl.workspace import ClientData, Workspace, workspace

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)

_latest: list[tuple[Mapping[str, FlatValue], tuple[FlatValue | None, bool], Workspace]] = []
"""The run that this process last took part in: every mod of every message asks, and to parse a configuration takes
longer than a small model's training. It is compared, not hashed, for that is ten times as fast."""


def run_workspace(context: Context) -> Workspace:
    """Return this process's workspace for the run of a context.

    Where the data lie is for its node to say: if it says anything of it, the run's ``data.root`` is not looked at.

    Raises:
        ConfigError: If the run's configuration is invalid, or names a file of initial weights to a node that says
            where its data lie.
    """
    data_root = context.node_config.get(DATA_ROOT)
    own_places = data_root is not None or DATA_PATH in context.node_config
    for run_config, places, work in _latest:
        if run_config == context.run_config and places == (data_root, own_places):
            return work
    config = unflatten(context.run_config)
    if config.model.weights is not None and own_places:
        raise ConfigError(f"model.weights={config.model.weights}: this node reads no file that its server names")
    if own_places:  # without one of its own, the root is that of its environment
        config = replace(config, data=replace(config.data, root=None if data_root is None else str(data_root)))
    work = workspace(config)
    _latest[:] = [(dict(context.run_config), (data_root, own_places), work)]
    return work


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


class UnfitDataError(RuntimeError):
    """A node's own data don't fit the run; says no more of them than a server may hear."""


def client_data(context: Context) -> ClientData:
    """Return what this client trains and tests on.

    Where each node has data of its own, its configuration says where they lie, and never the run's: but for a node of
    a simulation, whose data lie below ``data.root``.

    Raises:
        UnfitDataError: If a node's own data cannot be read or don't fit. Its own log says which file and why.
        ConfigError: If its configuration doesn't say where they lie, or in a simulation for any of these.
    """
    work = run_workspace(context)
    partition = partition_of(context, work.config.data.clients)
    if work.config.data.source != OWN or context.node_config.get(SIMULATED) is True:
        return work.client(partition)
    if (place := context.node_config.get(DATA_PATH)) is None:
        way_out = (
            f"start it with --node-config \"{DATA_PATH}='/srv/ours'\" (simulate with snnfl run, or flower-simulation)"
        )
        raise ConfigError(f"data.source=own: this node names no data of its own; {way_out}")
    try:
        return work.client(partition, Path(str(place)))
    except Exception as error:  # of a plug-in's reader, too: whatever it says, it may name files
        told = error.told if isinstance(error, OwnDataError) else f"its data cannot be read ({type(error).__name__})"
        log(ERROR, "%s", error if isinstance(error, ConfigError) else f"{DATA_PATH}={place}: {error}")
        raise UnfitDataError(f"{told}; the node's own log says more") from None


def arrays_of(message: Message) -> ArrayRecord:
    """Return the arrays of a message."""
    return _record(message, ARRAYS, ArrayRecord)


def metrics_of(message: Message) -> MetricRecord:
    """Return the metrics of a reply."""
    return _record(message, METRICS, MetricRecord)


def orders_of(message: Message) -> ConfigRecord:
    """Return what the server says beside its arrays."""
    return _record(message, CONFIG, ConfigRecord)


def round_of(message: Message) -> int:
    """Return the round of a message, counted from 1."""
    return int(orders_of(message)[SERVER_ROUND])  # type: ignore[arg-type]


def _record(message: Message, name: str, kind: type[Record]) -> Record:
    """Look a record up; Flower's ``array_records`` and its like copy and check all records for that."""
    record = message.content[name]
    if not isinstance(record, kind):
        raise TypeError(f"record {name!r} is a {type(record).__name__}, expected {kind.__name__}")
    return record
