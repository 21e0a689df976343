"""SOLO as a Flower mod: the client trains its own model on and on, and nothing but metrics leaves (SNFL section 5.2).

The training function sees an ordinary round: the mod gives it the client's own model for the received one, and takes
the trained one out of the reply. In an S-run it also converts that model, to report what its spiking network achieves.
"""

from __future__ import annotations

import time

from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from clients.arrays import to_tensors
from clients.participant import arrays_of, metrics_of, partition_of, round_of, run_workspace
from clients.private_state import keep_own_model, own_model
from clients.spiking_mod import encoded
from snnfl.data import test_batches
from snnfl.protocol import ARRAYS, METRICS, SECONDS_CONVERT, SNN_ACCURACY
from snnfl.training import accuracy
from snnfl.updates import Unsent, UpdateFormat
from snnfl.workspace import Workspace


def solo_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Train the client's own model and keep it; runs of other algorithms pass through."""
    work = run_workspace(context)
    kind = message.metadata.message_type.partition(".")[0]
    if not isinstance(work.format, Unsent) or kind == MessageType.QUERY:
        return call_next(message, context)
    message.content[ARRAYS] = own_model(context, work)
    reply = call_next(message, context)
    if reply.has_error() or kind != MessageType.TRAIN:
        return reply
    trained, metrics = arrays_of(reply), metrics_of(reply)
    keep_own_model(context, trained)
    if work.format.own.graph is not None:
        partition = partition_of(context, work.config.data.clients)
        spiking = _spiking_metrics(work, work.format.own, trained, partition, round_of(message))
        metrics = MetricRecord({**metrics, **spiking})
    reply.content = RecordDict({METRICS: metrics})
    return reply


def _spiking_metrics(
    work: Workspace, own: UpdateFormat, trained: ArrayRecord, partition: int, server_round: int
) -> dict[str, float]:
    """Convert a trained model as an S-client does; measure the time and, where clients evaluate, the accuracy."""
    start = time.perf_counter()
    update = encoded(work, own, to_tensors(trained), partition, server_round)
    metrics = {SECONDS_CONVERT: time.perf_counter() - start}
    network = own.server_network(own.deployed(update))
    if work.config.evaluation.clients and network is not None:
        steps, size = work.config.conversion.steps, work.config.evaluation.batch_size
        pairs = (
            (images.to(work.device), labels.to(work.device))
            for images, labels in test_batches(work.dataset, size, work.test_images(server_round))
        )
        metrics[SNN_ACCURACY] = accuracy(lambda images: network.simulate(images, steps=steps)[steps], pairs)
    return metrics
