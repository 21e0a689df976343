"""Quantised uploads as a Flower mod: what leaves is packed, what rounding leaves out stays (error feedback).

It stands around all that makes an update, an attacker's scaling included, and inside the mod that keeps the state.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable

from clients.arrays import to_record, to_tensors
from clients.participant import arrays_of, partition_of, round_of, run_workspace
from snnfl import rng
from snnfl.protocol import ARRAYS

LEFT_OUT = "left-out"
"""Of the state: what earlier roundings left out, which never travels but for entering the next update."""


def packing_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Pack the update of a train message into few bits per weight; runs without quantised uploads pass through."""
    work = run_workspace(context)
    if work.packing is None or message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
        return call_next(message, context)
    sent = to_tensors(arrays_of(message))
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    kept = context.state.get(LEFT_OUT)
    before = to_tensors(kept) if isinstance(kept, ArrayRecord) else {}
    partition = partition_of(context, work.config.data.clients)
    draw = rng.generator(work.config.run.seed, "rounding of uploads", round_of(message), partition)
    packed, left_out = work.packing.encode(to_tensors(arrays_of(reply)), sent, before, draw)
    context.state[LEFT_OUT] = to_record(left_out)
    reply.content[ARRAYS] = to_record(packed)
    return reply
