"""Run a Flower app on Flower's simulation runtime: clients in Ray worker processes, several at a time.

Flower's public ``run_simulation`` cannot pass a run config: a context gets its own from an installed app bundle only
(``flwr/compat/client/run_info_store.py``). So both apps are wrapped in apps that fill it in. A client that fails is
answered as in process (:func:`experiments.engines.in_process.call_client`); one that ends its process, or hangs past
the server's timeout, costs an actor, which is replaced (:mod:`experiments.engines.ray_actors`). Machines of their own
would work side by side, so the time of each client counts from its own start, the first time with that of its worker.

Replies arrive in any order and node ids are random, so a server that wants one result on every engine sorts replies by
partition before it sums them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from flwr.supercore import telemetry

from experiments.engines import EngineError
from experiments.engines.flower_internals import restored_task_identity
from experiments.engines.in_process import call_client
from experiments.engines.ray_actors import TimeLimit, outlive, renewing_actors
from experiments.engines.ray_address import HERE, cluster_address
from experiments.engines.ray_internals import NO_PRESTART, without_helpers
from experiments.signals import same_handler
from snnfl.launch import names_in_use
from snnfl.plugins import Plugin

WORKER_DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
"""Environment of the workers, unless the user set it otherwise.

One torch thread each: where workers already fill the cores, more threads make training many times slower.
"""


class RayError(EngineError):
    """Ray cannot run this here; the text is one line."""


def run_on_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    run_config: Mapping[str, bool | int | float | str],
    clients: int,
    num_cpus_per_client: float = 1,
    num_gpus_per_client: float = 0.0,
    backend_config: Mapping[str, Mapping[str, Any]] | None = None,
    verbose: bool = False,
    node_config: Mapping[str, bool | int | float | str] | None = None,
    plugins: Sequence[Plugin] = (),
) -> Context:
    """Run a Flower app to its end on Ray, and shut Ray down.

    Ray pickles the ClientApp. Functions of an importable module travel by reference, so what such a module caches in
    a worker stays there; functions of ``__main__`` travel by value.

    Args:
        server_app: Runs in a thread of this process.
        client_app: Runs in the workers.
        run_config: Given to the server and to every client.
        clients: Number of nodes, one per partition.
        num_cpus_per_client: CPUs that a client occupies: on four, clients of 1 run four at a time. It limits how many
            run at a time, not what each one uses.
        num_gpus_per_client: GPUs that a client occupies; 0.25 lets four share one. Clients of 0 see no GPU.
        backend_config: Overrides in Flower's format: ``client_resources`` and ``init_args`` (of ``ray.init``).
        verbose: Show Flower's debug messages, the tracebacks of clients that fail, and what workers print.

        node_config: Given to each client beside its partition.
        plugins: That the workers run first.

    Returns:
        The server's context.

    Raises:
        ValueError: If there is no client.
        RayError: If Ray is already running in this process, does not start with these ``init_args``, or lacks the
            resources of a single client.
        Exception: Whatever the ServerApp raises.
    """
    if clients < 1:
        raise ValueError(f"clients={clients}: a federation needs at least 1")
    overrides = backend_config or {}
    defaults = {"num_cpus": num_cpus_per_client, "num_gpus": num_gpus_per_client}
    resources = {**defaults, **overrides.get("client_resources", {})}
    client = _ConfiguredClientApp(client_app, run_config, node_config or {})
    set_up, init_args = _worker_setup(names_in_use(), plugins), overrides.get("init_args", {})
    with restored_task_identity(), renewing_actors() as limit, _ray(init_args, set_up, verbose=verbose):
        _check_resources(resources)
        server = _ConfiguredServerApp(server_app, run_config, clients, limit)
        try:
            _simulate(server, client, clients, resources, verbose)
        finally:
            server.stop()
    return server.result()


class _ConfiguredClientApp(ClientApp):
    """Calls a ClientApp with the run config, and more of a node's configuration, in its context."""

    def __init__(
        self,
        app: ClientApp,
        run_config: Mapping[str, bool | int | float | str],
        node_config: Mapping[str, bool | int | float | str],
    ) -> None:
        super().__init__()
        self._app = app
        self._run_config = dict(run_config)
        self._node_config = dict(node_config)

    def __call__(self, message: Message, context: Context) -> Message:
        node_config = {**self._node_config, **context.node_config}
        configured = dataclasses.replace(context, run_config=self._run_config, node_config=node_config)
        reply = call_client(self._app, message, configured)
        context.state = configured.state  # the run config of `context` itself must stay as Flower made it
        return reply


class _ConfiguredServerApp(ServerApp):
    """Calls a ServerApp with the run config in its context once all nodes are there; remembers how it ended."""

    def __init__(
        self, app: ServerApp, run_config: Mapping[str, bool | int | float | str], clients: int, limit: TimeLimit
    ) -> None:
        super().__init__()
        self._limit = limit
        self._app = app
        self._run_config = dict(run_config)
        self._clients = clients
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._context: Context | None = None

    def __call__(self, grid: Grid, context: Context) -> None:
        pull, exchange = grid.pull_messages, grid.send_and_receive

        def exchange_limited(messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            outgoing = list(messages)
            self._limit.seconds = math.inf if timeout is None else timeout
            if timeout is not None:
                outlive(outgoing, timeout)
            return exchange(outgoing, timeout=None)  # every client answers or fails within its own time

        grid.send_and_receive = exchange_limited  # type: ignore[method-assign]

        def pull_until_stopped(message_ids: Iterable[str]) -> Iterable[Message]:
            if self._stopped.is_set():
                raise RuntimeError("the simulation was stopped")
            return pull(message_ids)

        # Without it, after Ctrl-C this thread would go on waiting for replies, and the process with it
        # (`send_and_receive` in flwr/superlink/grid/inmemory_grid.py polls `pull_messages`).
        grid.pull_messages = pull_until_stopped  # type: ignore[method-assign]
        configured = dataclasses.replace(context, run_config=dict(self._run_config))
        # Flower registers the nodes while the ServerApp already runs: the first round would sample from some of them.
        while len(list(grid.get_node_ids())) < self._clients and not self._stopped.wait(0.01):
            pass
        try:
            self._app(grid, configured)
        except BaseException as error:
            self._error = error
            raise
        self._context = configured

    def stop(self) -> None:
        """Make the ServerApp raise when it next asks for replies."""
        self._stopped.set()

    def result(self) -> Context:
        """Return the server's context, or raise what the ServerApp raised; Flower drops a ``SystemExit``."""
        if self._error is not None:
            raise self._error
        if self._context is None:
            raise RuntimeError("the simulation ended before the ServerApp did")
        return self._context


@contextmanager
def _ray(init_args: Mapping[str, Any], set_up: Callable[[], None], *, verbose: bool) -> Iterator[None]:
    """Start Ray, or join a cluster, and leave it whatever happens. Flower uses a Ray that is running already."""
    if ray.is_initialized():
        raise RayError("Ray is already running in this process: call ray.shutdown() first")
    try:
        address = cluster_address(init_args)
    except ValueError as error:
        raise RayError(str(error)) from None
    environment = {name: os.environ.get(name, default) for name, default in WORKER_DEFAULTS.items()}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # so that workers find what this process finds
    if verbose:
        environment["FLWR_LOG_LEVEL"] = "DEBUG"
    options = {"include_dashboard": False, "log_to_driver": verbose, "logging_level": "WARNING", **init_args}
    options["address"] = address
    if address == HERE:
        options["_system_config"] = {**NO_PRESTART, **(options.get("_system_config") or {})}
    runtime_env = dict(options.pop("runtime_env", {}))
    runtime_env["env_vars"] = {**environment, **runtime_env.get("env_vars", {})}
    runtime_env.setdefault("worker_process_setup_hook", set_up)
    try:
        try:
            # Ray's handler lets Flower's threads hold up the exit.
            with same_handler(), without_helpers(options), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
                ray.init(runtime_env=runtime_env, **options)
        except Exception as error:  # a node that starts too slowly is a bare Exception
            reason = " ".join(str(error).split())
            raise RayError(f"Ray does not start with init_args={dict(init_args)}: {reason}") from error
        yield
    finally:
        ray.shutdown()


def _worker_setup(names: Sequence[str], plugins: Sequence[Plugin]) -> Callable[[], None]:
    """Return what a worker does first: Ray lets its current folder hide our packages, and it has run no plug-in.

    It travels by value, as a function within another does.
    """

    def set_up() -> None:
        from snnfl.launch import importing, use_app
        from snnfl.plugins import adopt

        use_app(names)
        if "clients" in names:
            with importing():
                import clients.client_app  # noqa: F401
        adopt(plugins)

    return set_up


def _check_resources(resources: Mapping[str, float]) -> None:
    """Refuse at once what Flower would refuse after starting the ServerApp."""
    available = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        needed, there = resources[name], available.get(kind, 0.0)
        if not isinstance(needed, int | float) or not 0 <= needed <= there or (kind == "CPU" and needed == 0):
            lowest = "more than 0" if kind == "CPU" else "0 or more"
            raise RayError(f"{name}={needed!r} per client: expected {lowest}, and at most the {there:g} that Ray has")


def _simulate(
    server: ServerApp, client: ClientApp, clients: int, resources: Mapping[str, float], verbose: bool
) -> None:
    """Call Flower's runtime. It is public but deprecated in favour of ``flwr run``, and says so at each call."""

    def keep(record: logging.LogRecord) -> bool:
        return "`run_simulation` function is deprecated" not in record.getMessage()

    # Read from the environment when Flower is imported, which is before anyone could set our default.
    telemetry.FLWR_TELEMETRY_ENABLED = os.environ.get("FLWR_TELEMETRY_ENABLED", "0")
    logger = logging.getLogger("flwr")
    logger.addFilter(keep)
    try:
        run_simulation(
            server_app=server,
            client_app=client,
            num_supernodes=clients,
            backend_config={"client_resources": dict(resources)},
            verbose_logging=verbose,
        )
    finally:
        logger.removeFilter(keep)
