"""The Flower ClientApp: train on the client's partition, evaluate on the test set, answer who it is.

The functions know ordinary networks only; :mod:`clients.spiking_mod` turns the client of an S-run into a spiking one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.participant import partition_of, run_workspace
from clients.persistence import persistent_state
from clients.spiking_mod import spiking_mod
from snnfl import protocol, rng
from snnfl.data import batches, test_batches
from snnfl.training import Batch, Evaluation, evaluate, exchangeable, load_arrays, train_locally
from snnfl.workspace import Workspace

app = ClientApp(mods=[persistent_state, spiking_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model on the client's partition; reply with its arrays and metrics."""
    work, server_round = _load(message, context)
    config = work.config
    partition = partition_of(context, config.data.clients)
    draw = rng.generator(config.run.seed, "batches", server_round, partition)
    indices = work.partitions[partition]
    start = time.perf_counter()
    epochs = (
        _on(
            work,
            batches(work.dataset, indices, config.training.batch_size, generator=draw, augment=config.data.augment),
        )
        for _ in range(config.training.epochs)
    )
    result = train_locally(work.model, epochs, config.training, server_round=server_round)
    metrics: dict[str, int | float | list[int] | list[float]] = {
        protocol.EXAMPLES: result.samples,
        protocol.LOSS: result.loss,
        protocol.SECONDS_TRAIN: time.perf_counter() - start,
    }
    if config.evaluation.clients:
        start = time.perf_counter()
        metrics[protocol.ACCURACY] = _evaluate(work, server_round).accuracy
        metrics[protocol.SECONDS_EVALUATE] = time.perf_counter() - start
    arrays = ArrayRecord(exchangeable(work.model))
    return Message(RecordDict({protocol.ARRAYS: arrays, protocol.METRICS: MetricRecord(metrics)}), reply_to=message)


@app.evaluate()
def evaluate_received(message: Message, context: Context) -> Message:
    """Evaluate the received model on the test set: what this client holds after the round."""
    work, server_round = _load(message, context)
    result = _evaluate(work, server_round)
    metrics = MetricRecord(
        {protocol.EXAMPLES: result.images, protocol.ACCURACY: result.accuracy, protocol.LOSS: result.loss}
    )
    return Message(RecordDict({protocol.METRICS: metrics}), reply_to=message)


@app.query()
def who(message: Message, context: Context) -> Message:
    """Answer which partition this node holds."""
    work = run_workspace(context)
    record = MetricRecord({protocol.PARTITION: partition_of(context, work.config.data.clients)})
    return Message(RecordDict({protocol.METRICS: record}), reply_to=message)


def _load(message: Message, context: Context) -> tuple[Workspace, int]:
    """Load the message's arrays into the resident model; return the workspace and the round."""
    work = run_workspace(context)
    load_arrays(work.model, message.content.array_records[protocol.ARRAYS].to_torch_state_dict())
    return work, int(message.content.config_records[protocol.CONFIG][protocol.SERVER_ROUND])  # type: ignore[arg-type]


def _evaluate(work: Workspace, server_round: int) -> Evaluation:
    size, limit = work.config.evaluation.batch_size, work.test_images(server_round)
    return evaluate(work.model, _on(work, test_batches(work.dataset, size, limit)))


def _on(work: Workspace, pairs: Iterable[Batch]) -> Iterator[Batch]:
    """Move batches to the run's device."""
    return ((images.to(work.device), labels.to(work.device)) for images, labels in pairs)
