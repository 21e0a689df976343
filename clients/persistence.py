"""A client's private state on its own disk, as a Flower mod: what it keeps outlives its process and the server's.

Flower forgets ``context.state`` when a run ends or is killed. This mod writes it after each training, to a file of its
own for each round, and before each message puts back what the client held at that point of the run. So the state is a
function of partition and round, whatever happened in an attempt that was killed.

The folder is the one that the node's configuration names, with a folder of its own for each run: a server
says which run it is, not where its clients write. Nothing of it ever travels.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from clients.participant import metrics_of, orders_of, partition_of, round_of, run_workspace
from clients.privacy_mod import NOISE_KEY
from snnfl.checksummed import DamagedFileError, read_checksummed, round_file, round_files, write_checksummed
from snnfl.files import make_private
from snnfl.protocol import CONFIG, OLDEST_ROUND, RUN_TOKEN, STATE_DIRECTORY, STATE_ROUND, keeps_state

logger = logging.getLogger(__name__)

HELD = "held-since"
"""Record of a state that says after which round it was written; a file says it by its name."""


class StateLostError(RuntimeError):
    """A client keeps a state, but its node names no folder from which a resumed run could take it."""

    def __init__(self) -> None:
        super().__init__(
            "run.resume=true, but this node does not name the folder that its client's state lies in: start it with "
            f"--node-config \"{STATE_DIRECTORY}='/var/lib/snnfl'\""
        )


def persistent_state(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Restore the client's state before a message, write it after training. A client that keeps nothing writes nothing.

    Where clients keep a state, the reply to a train message says from which round's the client has trained.

    Raises:
        StateLostError: If the run is resumed and the client keeps a state, but its node names no folder for it.
        ValueError: If the server's name of the run is none.
    """
    kind = message.metadata.message_type.partition(".")[0]
    config, directory = run_workspace(context).config, context.node_config.get(STATE_DIRECTORY)
    lost = config.run.resume and directory is None
    if kind == MessageType.QUERY and lost and keeps_state(config):  # before a round is spent
        raise StateLostError
    if kind == MessageType.QUERY or CONFIG not in message.content:
        return call_next(message, context)
    server_round, folder = round_of(message), None
    in_a_run = RUN_TOKEN in orders_of(message)
    if directory is not None and in_a_run and config.run.keep_checkpoints:
        folder = _folder(Path(str(directory)), orders_of(message), context)
        # A client evaluates what it holds after training in the same round.
        last = server_round if kind == MessageType.EVALUATE else server_round - 1
        versions = round_files(folder)
        context.state = _restore({n: path for n, path in versions.items() if n <= last})
        if NOISE_KEY not in context.state:  # the key is of no round: one that is repeated has the noise that it had
            later = _restore({n: path for n, path in versions.items() if n > last})
            context.state.update({NOISE_KEY: later[NOISE_KEY]} if NOISE_KEY in later else {})
    held = _held(context.state)
    reply = call_next(message, context)
    if kind != MessageType.TRAIN or reply.has_error():
        return reply
    if context.state.keys() - {HELD}:
        if lost:
            raise StateLostError
        if folder is not None:
            _write(folder, server_round, context.state)
            _forget(folder, int(orders_of(message)[OLDEST_ROUND]))  # type: ignore[arg-type]
    if keeps_state(config):
        context.state[HELD] = MetricRecord({"round": server_round})
        metrics_of(reply)[STATE_ROUND] = held
    return reply


def _held(state: RecordDict) -> int:
    """Return after which round a state was written, 0 for none."""
    record = state.get(HELD)
    return int(record["round"]) if isinstance(record, MetricRecord) else 0  # type: ignore[arg-type]


def _folder(directory: Path, order: ConfigRecord, context: Context) -> Path:
    """Return the folder of this client in this run."""
    token = str(order[RUN_TOKEN])
    if not re.fullmatch(r"[0-9a-f]{32}", token):  # it becomes part of a path
        raise ValueError(f"{RUN_TOKEN}={token[:80]!r}: expected 32 hexadecimal digits")
    return directory / token / str(partition_of(context, run_workspace(context).config.data.clients))


def _restore(versions: dict[int, Path]) -> RecordDict:
    """Read the newest intact version; without any the state is empty, as before the first training.

    Args:
        versions: By round, ascending.
    """
    for server_round, path in reversed(versions.items()):
        try:
            arrays, records = read_checksummed(path)
        except DamagedFileError as error:
            logger.warning(
                "%s; the client takes the version before it, so the run may differ from an undisturbed one", error
            )
            continue
        state = RecordDict(
            {
                record: ArrayRecord(
                    {
                        name: Array(dtype, tuple(shape), stype, arrays[f"{record}/{name}"].tobytes())
                        for name, (dtype, shape, stype) in described.items()
                    }
                )
                for record, described in records.items()
            }
        )
        state[HELD] = MetricRecord({"round": server_round})
        return state
    return RecordDict()


def _write(folder: Path, server_round: int, state: RecordDict) -> None:
    """Write the state as it is after a round; not synced, which would cost a small model more than its training."""
    other = [name for name, record in state.items() if not isinstance(record, ArrayRecord) and name != HELD]
    if other:
        raise TypeError(
            f"context.state[{other[0]!r}] is a {type(state[other[0]]).__name__}; only ArrayRecords are kept"
        )
    records = state.array_records.items()
    # As Flower has serialised them: to decode and encode them anew would take longer than the rest.
    arrays = {
        f"{record}/{name}": np.frombuffer(a.data, np.uint8) for record, values in records for name, a in values.items()
    }
    about = {record: {name: (a.dtype, a.shape, a.stype) for name, a in values.items()} for record, values in records}
    make_private(folder)
    write_checksummed(round_file(folder, server_round), arrays, about, sync=False, private=True)


def _forget(folder: Path, oldest: int) -> None:
    """Delete what no resumed run can ask for: a client may not have trained for many rounds before ``oldest``.

    Args:
        folder: Of the client.
        oldest: Round of the oldest checkpoint that the server may still have. The newest version up to it stays.
    """
    obsolete = [path for server_round, path in round_files(folder).items() if server_round <= oldest][:-1]
    for path in obsolete:
        path.unlink(missing_ok=True)
