"""SOLO as a Flower mod: the client trains its own model on and on, and nothing but metrics leaves (SNFL section 5.2).

The training function sees an ordinary round: the mod gives it the client's own model for the received one, and takes
the trained one out of the reply. In an S-run it also converts that model, to report what its spiking network achieves.
"""

from __future__ import annotations

import time

from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from clients.arrays import to_tensors
from clients.participant import arrays_of, client_data, metrics_of, round_of, run_workspace
from clients.private_state import keep_own_model, own_model
from clients.spiking_mod import encoded
from snnfl.data import test_batches
from snnfl.protocol import ARRAYS, METRICS, SECONDS_CONVERT, SNN_ACCURACY
from snnfl.training import accuracy
from snnfl.updates import Unsent, UpdateFormat


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
        spiking = _spiking_metrics(context, work.format.own, trained, round_of(message))
        metrics = MetricRecord({**metrics, **spiking})
    reply.content = RecordDict({METRICS: metrics})
    return reply


def _spiking_metrics(context: Context, own: UpdateFormat, trained: ArrayRecord, server_round: int) -> dict[str, float]:
    """Convert a trained model as an S-client does; measure the time and, where clients evaluate, the accuracy."""
    start, work = time.perf_counter(), run_workspace(context)
    update = encoded(context, own, to_tensors(trained), server_round)
    metrics = {SECONDS_CONVERT: time.perf_counter() - start}
    network = own.server_network(own.deployed(update))
    if work.config.evaluation.clients and network is not None:
        steps, size = work.config.conversion.steps, work.config.evaluation.batch_size
        pairs = (
            (images.to(work.device), labels.to(work.device))
            for images, labels in test_batches(client_data(context).dataset, size, work.test_images(server_round))
        )
        metrics[SNN_ACCURACY] = accuracy(lambda images: network.simulate(images, steps=steps)[steps], pairs)
    return metrics
