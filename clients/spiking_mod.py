"""The client's half of an S-variant, as a Flower mod: biases stay here, what leaves is a spiking network.

The mod makes the conversion invisible to the training function, so that any client becomes an S-client: before
training it completes the received arrays with the client's own biases, after it it keeps the new biases and
replaces the ANN in the reply with its calibrated spiking network (SNFL Algorithm 1 and section 4.2).
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from flwr.app import Context, Message, MessageType, MetricRecord
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from clients.arrays import to_record, to_tensors
from clients.participant import arrays_of, client_data, metrics_of, partition_of, round_of, run_workspace
from clients.private_state import completed
from snnfl import rng
from snnfl.config import keeps_biases
from snnfl.data import calibration_batch
from snnfl.private_snn import client_images
from snnfl.protocol import ARRAYS, METRICS, SECONDS_CONVERT
from snnfl.updates import UpdateFormat

PRIVATE_BIASES = "private-biases"


def spiking_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Complete what comes in with private biases; convert what goes out. Plain runs and SOLO pass through."""
    work = run_workspace(context)
    kind = message.metadata.message_type.partition(".")[0]  # Flower routes "train.default" as it does "train"
    if work.format.kind != "converted" or kind == MessageType.QUERY:
        return call_next(message, context)
    if work.format.private_names:
        message.content[ARRAYS] = completed(arrays_of(message), context, work, PRIVATE_BIASES)
    reply = call_next(message, context)
    if kind != MessageType.TRAIN or reply.has_error():
        return reply
    start = time.perf_counter()
    trained = to_tensors(arrays_of(reply))
    if keeps_biases(work.config):  # a record even of none, for a state that isn't there counts as lost
        context.state[PRIVATE_BIASES] = to_record({name: trained[name] for name in work.format.private_names})
    reply.content[ARRAYS] = to_record(encoded(context, work.format, trained, round_of(message)))
    metrics = metrics_of(reply)
    reply.content[METRICS] = MetricRecord({**metrics, SECONDS_CONVERT: time.perf_counter() - start})
    return reply


def encoded(
    context: Context, format: UpdateFormat, state: Mapping[str, Tensor], server_round: int
) -> dict[str, Tensor]:
    """Lay out what leaves a client that has trained.

    Args:
        context: Of the client; its private images calibrate, or ones that are made of the state alone.
        format: Of the update.
        state: The trained ANN, biases included.
        server_round: Decides, with the partition, which images.
    """
    work, data = run_workspace(context), client_data(context)
    partition, conversion = partition_of(context, work.config.data.clients), work.config.conversion
    on_device = {name: array.to(work.device) for name, array in state.items()}
    if conversion.data == "synthetic":
        draw = rng.generator(work.config.run.seed, "synthetic calibration", server_round, partition)
        images = client_images(work.graph, on_device, data.dataset, conversion, draw)
    else:
        draw = rng.generator(work.config.run.seed, "calibration", server_round, partition)
        images = calibration_batch(data.dataset, data.indices, conversion.calibration_images, draw)
    return format.encode(on_device, images.to(work.device))
