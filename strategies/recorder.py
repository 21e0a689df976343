"""What is measured after each round, and the row of ``metrics.jsonl`` that says it."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from flwr.app import ArrayRecord

from snnfl import protocol
from snnfl.config import spikes_natively
from snnfl.data import Dataset, test_batches
from snnfl.metrics import Activity, measure_activity, warning_of
from snnfl.models import SpikingModel, mute_potentials
from snnfl.poisoning import attacks_in, triggered_test
from snnfl.training import Batch, accuracies, accuracy, copy_arrays, evaluate, learning_rate
from snnfl.training.evaluation import evaluation_mode
from snnfl.workspace import EVALUATION, Workspace
from strategies.arrays import tensors_of
from strategies.attendance import KnownStates, attendance_columns
from strategies.detecting import detection_columns
from strategies.guarded import Guarded
from strategies.population import Population
from strategies.privacy import NOTHING
from strategies.run_directory import RunDirectory
from strategies.tracking import Track
from strategies.update import Update

logger = logging.getLogger(__name__)

Row: TypeAlias = dict[str, Any]
Observer: TypeAlias = Callable[[Row], object]


ACTIVITY_SAMPLES = 128
"""Test samples on which firing rates and operations are counted, or those of a round's test if they are fewer."""


class Accuracies(NamedTuple):
    """Of the server's networks, as far as there are any.

    Attributes:
        snn: Of the spiking network, be it converted or trained as one.
        ann: Of the ordinary network.
        at: Of the spiking network by its length, as text.
    """

    snn: float | None = None
    ann: float | None = None
    at: dict[str, float] | None = None


class Recorder:
    """Evaluate the server after each round and record the round.

    Args:
        work: Workspace of the server.
        strategy: Its report, and in an S-run its network, are read.
        population: Its traffic is read.
        directory: Where rows are written.
        observers: Told each row when it is written, such as a progress bar.
        rows: Of the rounds that a resumed run has played before.
        track: Tells a tracker each row before it is written, with what came of that.
    """

    def __init__(
        self,
        work: Workspace,
        strategy: Guarded,
        population: Population,
        directory: RunDirectory,
        observers: Sequence[Observer],
        rows: Sequence[Row] = (),
        track: Track | None = None,
    ) -> None:
        self.work = work
        self.strategy = strategy
        self.population = population
        self.directory = directory
        self.observers = observers
        self.track = track
        self.states = KnownStates(work.config, rows)
        self._round_started = time.perf_counter()
        rates = [pair for row in rows for pair in (row.get("firing_rates") or {}).items()]
        self._warned = {layer for layer, rate in rates if self._warning(layer, rate) is not None}

    def __call__(self, server_round: int, arrays: ArrayRecord) -> None:
        """Record a round, counted from 1."""
        start = time.perf_counter()
        curve = self.work.config.evaluation.curve
        found = self._server_accuracies(server_round, arrays, self.work.server_data, curve)
        success = self._attack_success(server_round, arrays)
        activity = self._activity(server_round)
        row = {
            "round": server_round,
            "server_snn_accuracy": found.snn,
            "server_snn_accuracy_at": found.at,
            "server_ann_accuracy": found.ann,
            "attack_success_snn": success.snn,
            "attack_success_ann": success.ann,
            **activity_columns(activity),
            **client_columns(self.strategy),
            **self._attendance_columns(server_round),
            **self._traffic_columns(),
            **(NOTHING if self.strategy.privacy is None else self.strategy.privacy.columns()),
            "seconds_aggregate": self.strategy.report.seconds,
            "seconds_server_evaluate": time.perf_counter() - start,
            "seconds_round": time.perf_counter() - self._round_started,
            "detection": detection_columns(self.strategy.report.screening, attacks_in(self.work.config, server_round)),
            "learning_rate": learning_rate(self.work.config.training, server_round),
            "test_images": self._tested(server_round),
        }
        if self.track is not None:
            row = {**row, "tracking": self.track(row)}
        self.directory.append_metrics(row)
        for observer in self.observers:
            observer(row)
        self._round_started = time.perf_counter()

    def _tested(self, server_round: int) -> int:
        """Return how many samples the server tests on; none where only nodes have data."""
        available = len(self.work.server_data.test_labels)
        return (self.work.test_images(server_round) or available) if available else 0

    @property
    def _has_network(self) -> bool:
        """Whether the server holds all arrays of a network; else the resident model is some client's."""
        format = self.work.format
        return bool(self.strategy.spec.arrays) and not (format.graph is None and format.private_names)

    def _activity(self, server_round: int) -> Activity | None:
        """Measure what the neurons of a model that is trained as a spiking one do, and warn of those that tell nothing.

        The resident model holds the server's arrays, from having been evaluated.
        """
        work = self.work
        if not isinstance(work.model, SpikingModel) or not self._has_network or not self._tested(server_round):
            return None
        count = min(ACTIVITY_SAMPLES, work.test_images(server_round) or ACTIVITY_SAMPLES)
        samples = work.dataset.normalise(work.server_data.test_images[:count]).to(work.device)
        with evaluation_mode(work.model), work.drawing(EVALUATION):
            found = measure_activity(work.model, samples, work.structure)
        for layer, rate in found.rates.items():
            if layer not in self._warned and (line := self._warning(layer, rate)) is not None:
                logger.warning(line)
                self._warned.add(layer)
        return found

    def _warning(self, layer: str, rate: float) -> str | None:
        """Return what is wrong with a layer's firing rate, or ``None``."""
        if mute_potentials(self.work.config.quantization):
            return None  # the ServerApp has said so, and what to set; nothing that warning_of names would help
        model = self.work.config.model
        return warning_of(layer, rate, normalised=model.batch_norm or model.group_norm > 0)

    def _attack_success(self, server_round: int, arrays: ArrayRecord) -> Accuracies:
        """Return which part of the triggered test images of other labels either network takes for the target."""
        if self.work.config.poisoning.attack == "none":
            return Accuracies()
        return self._server_accuracies(server_round, arrays, self._triggered)

    @cached_property
    def _triggered(self) -> Dataset:
        return triggered_test(self.work.server_data, self.work.config)

    def _server_accuracies(
        self, server_round: int, arrays: ArrayRecord, dataset: Dataset, curve: Sequence[int] = ()
    ) -> Accuracies:
        """Return the accuracy of the server's spiking network and of its ANN on a test split.

        One simulation serves the run's length and those of the curve, so it lasts as long as the longest.

        In an S-run the server has no ANN, for it has no biases: its ANN is the analog twin of its spiking network. A
        network that is trained as a spiking one has no twin. In a SOLO run the server has neither, and in a FedBN run a
        network without batch normalisation, which says nothing. Where only nodes have data, nobody tests here.
        """
        work, size = self.work, self.work.config.evaluation.batch_size
        if not self._has_network or not len(dataset.test_labels):
            return Accuracies()
        limit = work.test_images(server_round)
        if work.format.graph is None:
            copy_arrays(work.arrays, tensors_of(arrays))
            with work.drawing(EVALUATION):
                own = evaluate(work.model, self._batches(dataset, size, limit)).accuracy
            return Accuracies(snn=own) if spikes_natively(work.config) else Accuracies(ann=own)
        network, steps = self.strategy.network, work.config.conversion.steps
        if network is None:
            return Accuracies()
        network = network.to(work.device)
        lengths = (*curve, steps)
        by_length = accuracies(
            lambda images: network.simulate(images, steps=max(lengths), curve=lengths),
            self._batches(dataset, size, limit),
        )
        return Accuracies(
            snn=by_length[steps],
            ann=accuracy(network.analog, self._batches(dataset, size, limit)),
            at={str(length): by_length[length] for length in curve},
        )

    def _batches(self, dataset: Dataset, size: int, limit: int) -> Iterator[Batch]:
        device = self.work.device
        return ((x.to(device), y.to(device)) for x, y in test_batches(dataset, size, limit))

    def _attendance_columns(self, server_round: int) -> Row:
        report, nodes = (
            self.strategy.report,
            {partition: node for node, partition in self.population.partitions.items()},
        )
        metrics = {p: update.metrics for p, update in zip(report.partitions, report.updates, strict=True)}
        return {
            "states_lost": self.states.count_lost(server_round, metrics, nodes),
            **attendance_columns(self.work.config, report.asked, report.faults, nodes),
        }

    def _traffic_columns(self) -> Row:
        traffic = self.population.take_traffic()
        return {"bytes_up": traffic.up, "bytes_down": traffic.down, "seconds_exchange": traffic.seconds}


def activity_columns(activity: Activity | None) -> Row:
    """Return what a model that is trained as a spiking one does for a sample; ``None`` for others.

    Energy is that of arithmetic, and with reading and writing memory.
    """
    count = None if activity is None else activity.count
    return {
        "firing_rates": None if activity is None else dict(activity.rates),
        "firing_rate": None if count is None else count.total.rate,
        "synaptic_operations": None if count is None else count.total.acs,
        "multiply_accumulates": None if count is None else count.total.macs,
        "nanojoules": None if count is None else count.energy.compute / 1e3,
        "nanojoules_with_memory": None if count is None else count.energy.total / 1e3,
    }


def client_columns(strategy: Guarded) -> Row:
    """Summarise the clients of a round; ``None`` where there is no valid reply or nothing was measured.

    Accuracies are means and population standard deviations over clients, each client's own network after its local
    training counting once; those that are called weighted are weighted by test samples. The training loss is weighted
    by training examples. Seconds are summed over clients.
    """
    report = strategy.report
    accuracies = [u.metrics[protocol.ACCURACY] for u in report.updates if protocol.ACCURACY in u.metrics]
    spiking = [u.metrics[protocol.SNN_ACCURACY] for u in report.updates if protocol.SNN_ACCURACY in u.metrics]
    received = [metrics[protocol.ACCURACY] for metrics in report.evaluations]
    # Of a sum there is a mean, and no deviation from it.
    spread = (lambda values: None) if report.summed else statistics.pstdev
    return {
        "client_ann_accuracy_mean": statistics.fmean(accuracies) if accuracies else None,
        "client_ann_accuracy_std": spread(accuracies) if accuracies else None,
        "client_snn_accuracy_mean": statistics.fmean(spiking) if spiking else None,
        "client_snn_accuracy_std": spread(spiking) if spiking else None,
        "client_received_accuracy_mean": statistics.fmean(received) if received else None,
        "client_received_accuracy_std": statistics.pstdev(received) if received else None,
        "client_received_accuracy_weighted": _weighted(report.evaluations, protocol.ACCURACY),
        "client_received_loss_weighted": _weighted(report.evaluations, protocol.LOSS),
        "train_loss": _weighted([update.metrics for update in report.updates], protocol.LOSS),
        "replies": len(report.updates),
        "refused": report.refused,
        "failed": report.failed,
        "excluded": report.excluded,
        "aggregated": report.aggregated,
        "seconds_train": _total(report.updates, protocol.SECONDS_TRAIN),
        "seconds_convert": _total(report.updates, protocol.SECONDS_CONVERT),
        "seconds_client_evaluate": _total(report.updates, protocol.SECONDS_EVALUATE),
    }


def _weighted(replies: Sequence[Mapping[str, float]], metric: str) -> float | None:
    """Return the mean of a metric, weighted by the examples that each reply is about."""
    if any(metric not in reply for reply in replies):  # of noised sums none is told
        return None
    examples = sum(int(reply[protocol.EXAMPLES]) for reply in replies)
    return sum(int(reply[protocol.EXAMPLES]) * reply[metric] for reply in replies) / examples if replies else None


def _total(updates: Sequence[Update], metric: str) -> float:
    return sum(update.metrics.get(metric, 0.0) for update in updates)
