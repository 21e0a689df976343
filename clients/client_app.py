"""The Flower ClientApp: train on the client's data, evaluate on what it tests on, answer who it is.

The functions know ordinary networks only; :mod:`clients.spiking_mod` turns the client of an S-run into a spiking one,
:mod:`clients.solo_mod` that of a SOLO run into one that keeps its weights, :mod:`clients.norm_mod` that of a FedBN run
into one that keeps its batch normalisation, :mod:`clients.privacy_mod` clips and noises updates,
:mod:`clients.packing_mod` packs them into few bits, :mod:`clients.poisoning_mod` makes attackers of some clients,
:mod:`clients.masking_mod` masks what leaves where the server is to learn the sum alone. Before all of them
:mod:`clients.node_policy` refuses what the node's own configuration forbids.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.arrays import to_record, to_tensors
from clients.control import correction, renewed
from clients.flower_internals import measured
from clients.ground_truth_mod import ground_truth_mod
from clients.masking_mod import advertised_keys, confirmed_survivors, masking_mod, shared_seeds, unmasking_shares
from clients.node_policy import node_policy
from clients.norm_mod import norm_mod
from clients.packing_mod import packing_mod
from clients.participant import arrays_of, client_data, orders_of, partition_of, round_of, run_workspace
from clients.persistence import persistent_state
from clients.poisoning_mod import poisoning_mod, scaling_mod
from clients.privacy_mod import privacy_mod
from clients.private_state import keep_own_model, own_model
from clients.private_training import train_on_private_samples
from clients.solo_mod import solo_mod
from clients.spiking_mod import spiking_mod
from snnfl import protocol
from snnfl.config import OWN, ConfigError, client_side
from snnfl.data import batches, laid_out, test_batches, training_batches
from snnfl.training import (
    Batch,
    Evaluation,
    Objective,
    controlled,
    copy_arrays,
    cross_entropy,
    evaluate,
    label_calibrated,
    model_contrastive,
    proximal,
    train_locally,
)
from snnfl.training.objectives import OBJECTIVES
from snnfl.workspace import EVALUATION, ClientData, Workspace

app = ClientApp(
    mods=[
        node_policy,
        masking_mod,
        persistent_state,
        packing_mod,
        solo_mod,
        poisoning_mod,
        privacy_mod,
        spiking_mod,
        scaling_mod,
        norm_mod,
        ground_truth_mod,
    ]
)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model on the client's data; reply with its arrays and metrics."""
    work, server_round = _load(message, context)
    config = work.config
    partition, data = partition_of(context, config.data.clients), client_data(context)
    metrics = _received_loss(work, data)
    objective = _objective(message, context, work)
    start = time.perf_counter()
    with work.drawing("encoding", server_round, partition):
        if config.privacy.mechanism == "example":
            result = train_on_private_samples(
                message, context, objective, server_round=server_round, partition=partition
            )
        else:
            epochs = _epochs(work, data, work.batch_draw(server_round, partition))
            result = train_locally(work.model, epochs, config.training, server_round=server_round, objective=objective)
    work.settle()
    metrics |= {
        protocol.EXAMPLES: result.samples,
        protocol.LOSS: result.loss,
        protocol.SECONDS_TRAIN: time.perf_counter() - start,
    }
    if protocol.LOCAL_STEPS in protocol.train_metrics(config):
        metrics[protocol.LOCAL_STEPS] = result.steps
    if config.evaluation.clients:
        start = time.perf_counter()
        metrics[protocol.own_accuracy(config)] = _evaluate(work, data, server_round).accuracy
        metrics[protocol.SECONDS_EVALUATE] = time.perf_counter() - start
    arrays = to_record(work.arrays)
    if protocol.CONTRASTIVE_MU in orders_of(message):
        keep_own_model(context, arrays)
    content = RecordDict({protocol.ARRAYS: arrays, protocol.METRICS: measured(metrics)})
    if client_side(config).control_variates:
        content[protocol.CONTROL] = renewed(message, context, work, result.steps)
    return Message(content, reply_to=message)


def _epochs(work: Workspace, data: ClientData, draw: torch.Generator) -> Iterator[Iterator[Batch]]:
    """Yield each epoch's batches of the client's samples."""
    training, augment = work.config.training, work.config.data.augment
    where: dict[str, Any] = {"layout": work.layout, "device": work.device}
    for _ in range(training.epochs):
        yield batches(data.dataset, data.indices, training.batch_size, generator=draw, augment=augment, **where)


@app.evaluate()
def evaluate_received(message: Message, context: Context) -> Message:
    """Evaluate the received model on what this client tests on: what it holds after the round."""
    work, server_round = _load(message, context)
    result = _evaluate(work, client_data(context), server_round)
    metrics = MetricRecord(
        {protocol.EXAMPLES: result.images, protocol.ACCURACY: result.accuracy, protocol.LOSS: result.loss}
    )
    return Message(RecordDict({protocol.METRICS: metrics}), reply_to=message)


@app.query()
def who(message: Message, context: Context) -> Message:
    """Answer which partition this node holds and, of data of its own that fit the run, how many samples it has."""
    work = run_workspace(context)
    answer: dict[str, Any] = {protocol.PARTITION: partition_of(context, work.config.data.clients)}
    if work.config.data.source == OWN:
        answer |= _own_sizes(work, client_data(context))
    return Message(RecordDict({protocol.METRICS: MetricRecord(answer)}), reply_to=message)


@app.query(protocol.SECURE_KEYS)
def advertise(message: Message, context: Context) -> Message:
    """Advertise the keys of a round's masks."""
    return advertised_keys(message, context)


@app.query(protocol.SECURE_SHARES)
def share(message: Message, context: Context) -> Message:
    """Share the seeds of a round's masks among the neighbours."""
    return shared_seeds(message, context)


@app.query(protocol.SECURE_CONFIRM)
def confirm(message: Message, context: Context) -> Message:
    """Confirm to the neighbours who is in a round's sum."""
    return confirmed_survivors(message, context)


@app.query(protocol.SECURE_UNMASK)
def unmask(message: Message, context: Context) -> Message:
    """Tell what takes the masks out of a round's sum."""
    return unmasking_shares(message, context)


def _own_sizes(work: Workspace, data: ClientData) -> dict[str, int]:
    """Return what a node tells of its own data.

    Raises:
        ConfigError: If they are too few to train on.
    """
    needed = max(2, work.config.data.minimum_samples)  # batch normalisation cannot train on one
    if len(data.indices) < needed:
        raise ConfigError(
            f"data.minimum_samples={work.config.data.minimum_samples}: it has fewer than {needed} training samples"
        )
    return {protocol.EXAMPLES: len(data.indices), protocol.TEST_EXAMPLES: len(data.dataset.test_labels)}


def _objective(message: Message, context: Context, work: Workspace) -> Objective:
    """Return what the server asks the client to minimise, about the model that has just been loaded.

    The message says it, not the run's configuration: that is how Flower's FedProx tells its clients, so one place
    decides.
    """
    asked: Mapping[str, Any] = orders_of(message)
    if client_side(work.config).control_variates:
        return controlled(work.model, correction(message, context, work))
    if protocol.OBJECTIVE in asked:
        return OBJECTIVES.find(str(asked[protocol.OBJECTIVE]))(work.model, asked)
    if protocol.PROXIMAL_MU in asked:
        return proximal(work.model, asked[protocol.PROXIMAL_MU])
    if protocol.CONTRASTIVE_MU in asked:
        previous = to_tensors(own_model(context, work))
        mu, temperature = asked[protocol.CONTRASTIVE_MU], asked[protocol.TEMPERATURE]
        return model_contrastive(work.model, previous, mu=mu, temperature=temperature)
    if protocol.LOGIT_CALIBRATION in asked:
        return label_calibrated(
            work.model,
            torch.bincount(client_data(context).labels, minlength=work.dataset.classes),
            calibration=asked[protocol.LOGIT_CALIBRATION],
            spread=asked[protocol.SPREAD_WEIGHT],
            distillation=asked[protocol.DISTILLATION_WEIGHT],
        )
    return cross_entropy


def _received_loss(work: Workspace, data: ClientData) -> dict[str, int | float | list[int] | list[float]]:
    """Measure the received model's loss on the client's data, which weighs the client in q-FedAvg."""
    if not client_side(work.config).received_loss:
        return {}
    pairs = training_batches(data.dataset, data.indices, work.config.evaluation.batch_size)
    with work.drawing(EVALUATION):
        return {protocol.RECEIVED_LOSS: evaluate(work.model, _on(work, pairs)).loss}


def _load(message: Message, context: Context) -> tuple[Workspace, int]:
    """Load the message's arrays into the resident model; return the workspace and the round."""
    work = run_workspace(context)
    copy_arrays(work.arrays, to_tensors(arrays_of(message)))
    return work, round_of(message)


def _evaluate(work: Workspace, data: ClientData, server_round: int) -> Evaluation:
    size, limit = work.config.evaluation.batch_size, work.test_images(server_round)
    with work.drawing(EVALUATION):
        return evaluate(work.model, _on(work, test_batches(data.dataset, size, limit)))


def _on(work: Workspace, pairs: Iterable[Batch]) -> Iterator[Batch]:
    """Move batches to the run's device, laid out as its model wants them."""
    device, layout = work.device, work.layout
    return ((laid_out(images, layout, device), labels.to(device)) for images, labels in pairs)
