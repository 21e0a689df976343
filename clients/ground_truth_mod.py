"""A simulated client that consents tells, on its own disk, what an attack is scored against. Nothing of it travels.

Who attacks never reads it: ``snnfl.auditing.ground_truth`` is closed to ``snnfl.attacks``.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from clients.arrays import to_tensors
from clients.participant import arrays_of, client_data, partition_of, round_of, run_workspace
from snnfl.auditing.ground_truth import MAXIMUM_IMAGES, GroundTruth
from snnfl.auditing.recording import write_truth
from snnfl.protocol import TRUTH_DIRECTORY
from snnfl.training import private_biases
from snnfl.workspace import Workspace


def ground_truth_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Write images, labels and biases before and after training, if the run's configuration consents.

    It is the innermost mod: what it sees of the arrays is complete with the client's own biases.
    """
    if (place := place_of_truth(message, context)) is None:
        return call_next(message, context)
    work = run_workspace(context)
    before, reply = _biases(work, message), call_next(message, context)
    data = client_data(context)
    indices = data.indices
    told = indices[:0] if len(indices) > MAXIMUM_IMAGES else indices
    truth = GroundTruth(
        images=data.dataset.pixels(data.dataset.train_images[told]),
        labels=data.labels,
        biases=before,
        trained_biases=_biases(work, reply),
    )
    write_truth(*place, truth)
    return reply


def place_of_truth(message: Message, context: Context) -> tuple[Path, int, int] | None:
    """Return the folder, round and partition of the truth that a client tells; ``None`` if it tells none."""
    kind = message.metadata.message_type.partition(".")[0]
    work, directory = run_workspace(context), context.node_config.get(TRUTH_DIRECTORY)
    audit = work.config.audit
    if kind != MessageType.TRAIN or not audit.ground_truth or directory is None:
        return None
    server_round = round_of(message)
    partition = partition_of(context, work.config.data.clients)
    wanted = not audit.rounds or server_round in audit.rounds
    if not wanted or (audit.clients and partition not in audit.clients):
        return None
    return Path(str(directory)), server_round, partition


def _biases(work: Workspace, message: Message) -> dict[str, Tensor]:
    arrays = to_tensors(arrays_of(message))
    return {name: arrays[name] for name in private_biases(work.model) if name in arrays}
