"""What a person sees while a run goes on: one bar per round, one line per finished round, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from snnfl.config import Config, client_side, counted, prefixed, sampled_clients
from strategies.bases import find

PACE = 10.0
"""Seconds between two lines of progress in a log."""


class Bars(Progress):
    """Rich's progress bars, but for the blank line that they leave where there is no terminal."""

    def stop(self) -> None:
        """Stop drawing."""
        self.live.stop()


class BarsOrLines(Bars):
    """Bars on a terminal; in a log a line at the start, for what is done, and at the end.

    Args:
        columns: Of the bars.
        unit: What is counted, in the plural.
        about: As :class:`rich.progress.Progress`.
    """

    def __init__(self, *columns: ProgressColumn, unit: str, **about: Any) -> None:
        super().__init__(*columns, **about)
        self.live.transient |= not self.console.is_terminal  # no bar behind the last line
        self.unit = unit
        self._told = 0.0

    def add_task(self, description: str, *args: Any, **about: Any) -> TaskID:
        """Add a bar."""
        task = super().add_task(description, *args, **about)
        self._tell(task, now=True)
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Move a bar on."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID, *, now: bool = False) -> None:
        """Print how far it is, unless the last line is younger than :data:`PACE` seconds and something is left."""
        task = next(task for task in self.tasks if task.id == task_id)
        if self.console.is_terminal or not task.total:
            return
        if now or task.finished or time.monotonic() - self._told >= PACE:
            self._told = time.monotonic()
            line = f"{task.description}: {task.completed:.0f} of {task.total:.0f} {self.unit}"
            if task.completed:
                each = (task.elapsed or 0.0) / task.completed
                left = timedelta(seconds=round(each * (task.total - task.completed)))
                line += f" in {timedelta(seconds=round(task.elapsed or 0.0))}" + (
                    f", about {left} left" if left else ""
                )
            self.console.print(line, highlight=False, markup=False)


class RoundProgress:
    """Progress of one run on a console; on something that is no terminal, the finished rounds alone.

    Args:
        config: Of the run.
        console: Where to draw.
    """

    def __init__(self, config: Config, console: Console) -> None:
        self.config = config
        self.rounds = config.run.rounds
        # Of clients in other processes nobody hears before the round is over: their bar only moves.
        here = config.engine.name == "in_process"
        self.selected = sampled_clients(config) if here else None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("clients"))
        self.progress = Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self.task = self.progress.add_task("connecting", total=self.selected)

    def __enter__(self) -> RoundProgress:
        """Start drawing."""
        self.progress.start()
        if self.config.run.resume:  # with which round it goes on is not known yet
            self.progress.update(self.task, description="resuming")
        else:
            self._begin(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self.progress.stop()

    def client_done(self) -> None:
        """Advance the bar of the round by one client."""
        self.progress.advance(self.task)

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Print a finished round and begin the bar of the next."""
        parts = [f"{algorithm(self.config)} round {row['round']:>{len(str(self.rounds))}}/{self.rounds}"]
        # In SOLO the server has no network, and where nodes have data of their own it may have nothing to test it on.
        parts += _shown(row, SERVER) or _shown(row, NODES) or _shown(row, CLIENTS)[:1] or ["server –"]
        if row["train_loss"] is not None:
            parts.append(f"loss {row['train_loss']:.3f}")
        if row.get("epsilon") is not None:
            parts.append(f"epsilon {row['epsilon']:.2f}")
        if row["refused"] or row["failed"]:
            parts.append(f"[red]{row['refused']} refused, {row['failed']} failed[/red]")
        if not row["aggregated"] and client_side(self.config).uploads:
            parts.append("[red]old weights kept[/red]")
        parts.append(f"{row['seconds_round']:.1f} s")
        self.progress.console.print("  ".join(parts), highlight=False)
        self._begin(row["round"] + 1)

    def _begin(self, server_round: int) -> None:
        description = f"round {min(server_round, self.rounds)}/{self.rounds}"
        self.progress.reset(self.task, total=self.selected, description=description)


SERVER = {"server SNN": "server_snn_accuracy", "server ANN": "server_ann_accuracy"}
NODES = {"at the nodes": "client_received_accuracy_weighted"}
CLIENTS = {"clients' ANN": "client_ann_accuracy_mean", "clients' SNN": "client_snn_accuracy_mean"}
"""Columns of accuracies, by title. What nodes test of the received network stands in for what the server tests."""

EPSILONS = {"epsilon, proven": "epsilon", "refuted": "epsilon_empirical"}
"""Columns of an upper and a lower bound of epsilon."""


def _shown(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    return [f"{title} {percent(row[key])}" for title, key in columns.items() if row.get(key) is not None]


class WatchedClientApp(ClientApp):
    """A ClientApp that tells whenever a client has been trained.

    Args:
        app: Called as it is.
        progress: Told.
    """

    def __init__(self, app: ClientApp, progress: RoundProgress) -> None:
        super().__init__()
        self.app = app
        self.progress = progress

    def __call__(self, message: Message, context: Context) -> Message:
        """Call the app."""
        reply = self.app(message, context)
        if message.metadata.message_type == MessageType.TRAIN:
            self.progress.client_done()
        return reply


def algorithm(config: Config) -> str:
    """Name the algorithm of a run as the papers do: FedAvg, S-FedAvg, S-MOON, DP-FedAvg, FedAvg (LIF)."""
    private = "" if config.privacy.mechanism == "none" else "DP-"
    return prefixed(config, private + find(config.strategy.name).title)


def percent(value: float | None) -> str:
    """Write an accuracy in [0, 1] as a percentage, a missing one as a dash."""
    return "–" if value is None else f"{100 * value:.2f} %"


def results_table(runs: Sequence[tuple[Config, Sequence[Mapping[str, Any]]]]) -> Table:
    """Lay the last rounds of several runs side by side; where clients poison, say below how far they came.

    Networks that none of the runs has, have no column.
    """
    config, rounds = runs[0][0], runs[0][1][-1]["round"]  # a run that goes on may have more than it is asked for
    title = f"{config.data.source}, {counted(config.data.clients, 'client')}, {counted(rounds, 'round')}"
    attacks = [line for config, rows in runs if (line := _attack(config, rows[-1]))]
    table = Table(title=title, caption="\n".join(attacks) or None)
    shown = {
        title: key
        for title, key in {**SERVER, **NODES, **CLIENTS}.items()
        if any(rows[-1].get(key) is not None for _, rows in runs)
    }
    if shown.keys() & SERVER.keys():
        shown = {title: key for title, key in shown.items() if title not in NODES}
    bounds = {t: k for t, k in EPSILONS.items() if any(rows[-1].get(k) is not None for _, rows in runs)}
    for name in ("", *shown, *bounds, "MB up", "seconds"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for each, rows in runs:
        last = rows[-1]
        table.add_row(
            algorithm(each),
            *(_with_deviation(last, key) for key in shown.values()),
            *("–" if last.get(key) is None else f"{last[key]:.2f}" for key in bounds.values()),
            f"{last['bytes_up'] / 1e6:.2f}",
            f"{sum(row['seconds_round'] for row in rows):.0f}",
        )
    return table


def _with_deviation(row: Mapping[str, Any], key: str) -> str:
    """Write an accuracy, of clients with its standard deviation."""
    deviation = row.get(key.replace("_mean", "_std")) if key.endswith("_mean") else None
    return percent(row.get(key)) + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _attack(config: Config, last: Mapping[str, Any]) -> str:
    """Say how far the clients that poison have come, nothing where it wasn't measured."""
    success = {"SNN": last.get("attack_success_snn"), "ANN": last.get("attack_success_ann")}
    values = ", ".join(f"{percent(value)} ({kind})" for kind, value in success.items() if value is not None)
    return values and f"{algorithm(config)}: success of {config.poisoning.attack} {values}"
