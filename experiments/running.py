"""Run a federation where its configuration says, and show it on a console."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.ending import NotAsConfiguredError, RunFailedError, keeping
from experiments.signals import SIGPIPE
from snnfl.config import Config
from snnfl.launch import importing
from snnfl.plugins import used

UNLIMITED = 10_000
"""Columns of a file, or of a pipe."""

LISTED = 100
"""Columns of a list of attacks there."""


def run_and_show(
    config: Config, console: Console, *, verbose: bool = False, kept: Callable[[], str] | None = None
) -> list[dict[str, Any]]:
    """Run a federation on the engine that its configuration names; return all rows of its ``metrics.jsonl``.

    A SuperLink's log is printed as it comes; the other engines show a bar per round.

    Args:
        config: Of the run.
        console: Where to show it.
        verbose: Show Flower's log, too.
        kept: Says what is kept if the run is broken off, and how to go on; ``None`` for what holds of ``snnfl run``.

    Raises:
        RunFailedError: If no client sent a valid update in any round.
        BrokenOffError: If the system doesn't let it go on.
    """
    with importing():
        from strategies.attendance import nothing_valid
        from strategies.resume import what_is_kept

    if config.engine.name == "deployment":
        rows = _run_deployed(config, console)
    else:
        with keeping(kept or (lambda: what_is_kept(config))):
            rows = _run_here(config, console, verbose)
    if (failure := nothing_valid(rows)) is not None:
        raise RunFailedError(failure)
    return rows


def may_replace_a_demo(config: Config) -> Config:
    """Let a demo overwrite what an earlier demo left, and nothing else.

    Raises:
        ConfigError: If another run lies there.
        FolderInUseError: If another process runs there.
    """
    from strategies.run_directory import RunFileError, held, read_environment, refuse_earlier, run_path

    try:
        command = read_environment(run_path(config)).get("command")
    except RunFileError:
        command = None
    own = isinstance(command, list) and command[1:2] == ["demo"]
    allowed = replace(config, run=replace(config.run, overwrite=config.run.overwrite or own))
    with held(allowed):
        refuse_earlier(allowed)
    return allowed


def check_results(runs: Mapping[str, tuple[Config, Sequence[Mapping[str, Any]]]]) -> None:
    """Look whether finished runs are what was configured.

    Args:
        runs: Configuration and rows by the name that a line begins with; the empty name for none.

    Raises:
        RunFailedError: With a line for each in which no client sent a valid update in any round.
        NotAsConfiguredError: With a line for each who isn't as configured, and why.
    """
    from strategies.attendance import nothing_valid, shortcomings

    def named(found: Mapping[str, Sequence[str]]) -> list[str]:
        return [f"{name}: {line}" if name else line for name, lines in found.items() for line in lines]

    failures = {name: nothing_valid(rows) for name, (_, rows) in runs.items()}
    if failed := named({name: [line] for name, line in failures.items() if line is not None}):
        raise RunFailedError(*failed)
    if lines := named({name: shortcomings(config, rows) for name, (config, rows) in runs.items()}):
        raise NotAsConfiguredError(lines)


def still_running(said: Sequence[str], follow: str, stop: str) -> str:
    """Say that a run goes on at its SuperLink when whoever follows it doesn't.

    Args:
        said: The lines of ``flwr run`` so far.
        follow: The command that follows the run, with ``{run}`` for Flower's number of it.
        stop: The command that ends it.
    """
    started = re.search(r"Successfully started run (\d+)", "\n".join(said))
    if started is None:
        return "no run had been started"
    commands = [command.format(run=started[1]) for command in (follow, stop)]
    return f"run {started[1]} goes on at the SuperLink: follow it with {commands[0]}, end it with {commands[1]}"


def _run_here(config: Config, console: Console, verbose: bool) -> list[dict[str, Any]]:
    with importing():
        from clients.client_app import app as client_app
        from experiments.progress import RoundProgress, WatchedClientApp
        from snnfl.config import flatten
        from strategies.run_directory import read_metrics, run_path, simulated_node
        from strategies.server_app import server_app

    engine, run_config, clients, path = config.engine, flatten(config), config.data.clients, run_path(config)
    node_config = simulated_node(config)
    with RoundProgress(config, console) as progress:
        app = server_app(progress.round_done)
        if engine.name == "ray":
            from experiments.engines.ray import run_on_ray  # importing Ray takes a second

            run_on_ray(
                app,
                client_app,
                run_config=run_config,
                clients=clients,
                node_config=node_config,
                num_cpus_per_client=engine.cpus_per_client,
                num_gpus_per_client=engine.gpus_per_client,
                backend_config={"init_args": {"address": engine.address}} if engine.address else None,
                verbose=verbose,
                plugins=used(config),
            )
        else:
            from experiments.engines.in_process import run_in_process

            watched = WatchedClientApp(client_app, progress)
            run_in_process(app, watched, run_config=run_config, clients=clients, node_config=node_config)
    return read_metrics(path)


def _run_deployed(config: Config, console: Console) -> list[dict[str, Any]]:
    from experiments.engines.deployment import run_deployed, with_absolute_paths
    from strategies.resume import what_is_kept
    from strategies.run_directory import METRICS_FILE, read_metrics

    path = Path(config.run.directory).expanduser() / config.run.name
    start, said = time.time(), list[str]()
    place = f" {config.engine.connection}" if config.engine.connection else ""

    def show(line: str) -> None:
        said.append(line)
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    goes_on = partial(still_running, said, f"flwr log {{run}}{place} --stream", f"flwr stop {{run}}{place}")
    with keeping(goes_on, terminated=lambda: f"the run is stopped at its SuperLink; {what_is_kept(config)}"):
        run_deployed(with_absolute_paths(config), show)
    untouched = not (path / METRICS_FILE).exists() or (path / METRICS_FILE).stat().st_mtime < start
    if untouched and not config.run.resume:  # a run that was complete has nothing to write
        raise RunFailedError(f"the run completed, but left nothing in {path}; look on the machine of its ServerApp")
    return read_metrics(path)


def show_list(console: Console, table: Table) -> None:
    """Write a list of attacks, whose sentences are wrapped where lines are left whole otherwise."""
    console.print(table, width=LISTED if console.width == UNLIMITED else None)


class _Console(Console):
    """A console that leaves lines whole where it writes to no terminal, and a closed output to the main thread."""

    def __init__(self) -> None:
        super().__init__()
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = UNLIMITED

    def on_broken_pipe(self) -> None:
        """Tell the main thread, which may be waiting for this one, instead of ending with status 1."""
        if SIGPIPE is None:
            super().on_broken_pipe()
        else:
            self.quiet = True
            os.kill(os.getpid(), SIGPIPE)


class _ConsoleHandler(logging.Handler):
    """Print log messages above the progress bar, each in a line of its own."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message as it is."""
        style = "yellow" if record.levelno >= logging.WARNING else None
        self.console.print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)


def console_of(verbose: bool) -> Console:
    """Return the console and send warnings (with ``verbose``, Flower's log too) through it, above the progress bar."""
    with importing():
        import flwr.supercore  # noqa: F401  (it sets the level of its log when it is imported)

    console = _Console()
    logging.basicConfig(level=logging.WARNING, handlers=[_ConsoleHandler(console)], format="%(message)s", force=True)
    logging.getLogger("strategies").setLevel(logging.INFO)
    flower = logging.getLogger("flwr")
    flower.setLevel(logging.INFO if verbose else logging.ERROR)
    return console
