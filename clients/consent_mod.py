"""A simulated client that consents tells, on its own disk, what an attack is scored against. Nothing of it travels.

Who attacks never reads it: ``snnfl.audit.ground_truth`` is closed to ``snnfl.attacks``.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable

from clients.arrays import to_tensors
from clients.participant import partition_of, run_workspace
from snnfl.audit.ground_truth import GroundTruth
from snnfl.audit.recording import SECRET, client_folder, write_truth
from snnfl.protocol import ARRAYS, CONFIG, SERVER_ROUND, TRUTH_DIRECTORY

MAXIMUM_IMAGES = 1024
"""No attack reconstructs more at once; of a client that has more only labels and biases are told."""


def consent_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Write images, labels and the biases that the training starts from, if the run's configuration consents.

    It is the innermost mod: what it sees of the arrays is complete with the client's own biases.
    """
    kind = message.metadata.message_type.partition(".")[0]
    audit, directory = run_workspace(context).config.audit, context.node_config.get(TRUTH_DIRECTORY)
    if kind == MessageType.TRAIN and audit.ground_truth and directory is not None:
        server_round = int(message.content.config_records[CONFIG][SERVER_ROUND])  # type: ignore[arg-type]
        work = run_workspace(context)
        partition = partition_of(context, work.config.data.clients)
        wanted = not audit.rounds or server_round in audit.rounds
        if wanted and (not audit.clients or partition in audit.clients):
            arrays = to_tensors(message.content.array_records[ARRAYS])
            indices = work.partitions[partition]
            told = indices[:0] if len(indices) > MAXIMUM_IMAGES else indices
            truth = GroundTruth(
                images=work.dataset.pixels(work.dataset.train_images[told]),
                labels=work.dataset.train_labels[indices],
                biases={name: arrays[name] for name in work.biases if name in arrays},
            )
            write_truth(client_folder(Path(str(directory)), server_round, partition) / SECRET, truth)
    return call_next(message, context)
