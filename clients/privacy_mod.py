"""The client's half of differential privacy where clients add the noise, as a Flower mod.

It stands outside the spiking mod: what is clipped and noised is all that leaves, thresholds and calibrated biases
included. :mod:`clients.private_training` is the other place, where the noise is in the training.
"""

from __future__ import annotations

import hashlib

import torch
from flwr.app import ArrayRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable

from clients.arrays import to_record, to_tensors
from clients.flower_internals import filled, whole_numbers
from clients.participant import arrays_of, orders_of, partition_of, round_of, run_workspace
from snnfl.poisoning import attacks_in
from snnfl.privacy.clipping import Layout, clipped
from snnfl.privacy.noise import KEY_BYTES, Stream, new_key
from snnfl.protocol import ARRAYS, CLIPPING_NORM, NOISE_MULTIPLIER, NOISED, REFERENCE
from snnfl.updates.coordinates import coordinates, origin, update_of
from snnfl.updates.noised import noisy_sum

NOISE_KEY = "noise-key"


def privacy_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip and noise the update of a train message, if the run's clients do so.

    With ``local`` differential privacy what leaves is an update again; with ``distributed`` it is whole numbers, with
    the client's share of the noise, for the mod that masks them.
    """
    work = run_workspace(context)
    mechanism, kind = work.config.privacy.mechanism, message.metadata.message_type.partition(".")[0]
    if mechanism not in ("local", "distributed") or kind != MessageType.TRAIN:
        return call_next(message, context)
    if partition_of(context, work.config.data.clients) in attacks_in(work.config, round_of(message)):
        return call_next(message, context)  # a liar doesn't clip what it sends
    sent, orders, stream = to_tensors(arrays_of(message)), orders_of(message), noise_stream(message, context)
    norm, noise = float(orders[CLIPPING_NORM]), float(orders[NOISE_MULTIPLIER])  # type: ignore[arg-type]
    known = origin(work.format, sent) | to_tensors(message.content.array_records.get(REFERENCE) or to_record({}))
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    update = to_tensors(arrays_of(reply))
    if mechanism == "distributed":
        sums = noisy_sum(work.config, work.format)
        sums.norm, sums.noise = norm, noise
        reply.content[ARRAYS] = filled([(NOISED, whole_numbers(sums.at(known).noised(update, sent, stream)))])
        return reply
    layout = Layout({name: tuple(array.shape) for name, array in known.items()})
    start = layout.vector(known)
    change = clipped(layout.vector(coordinates(work.format, update, sent)) - start, norm)
    change += noise * norm * stream.normal(layout.size)
    reply.content[ARRAYS] = to_record(update_of(work.format, layout.arrays(start + change)))
    return reply


def noise_stream(message: Message, context: Context) -> Stream:
    """Return what a client draws the noise of a message from.

    Its key stays in ``context.state``, so that a round that is repeated after a crash has the same noise, and nobody
    can average it away by asking again. A message that asks something else, under the same number, has other noise: of
    answers that differ in the noise's deviation or in the bound, nobody can take it off.
    """
    config = run_workspace(context).config
    kept = context.state.get(NOISE_KEY)
    if kept is None:
        partition = partition_of(context, config.data.clients)
        seed = config.privacy.noise_seed
        fresh = (
            new_key() if seed is None else Stream(new_key(seed), "client", partition).words(KEY_BYTES // 8).tobytes()
        )
        kept = to_record({"key": torch.frombuffer(bytearray(fresh), dtype=torch.uint8)})
        context.state[NOISE_KEY] = kept
    key = to_tensors(kept)["key"].numpy().tobytes()  # type: ignore[arg-type]
    orders, reference = orders_of(message), message.content.array_records.get(REFERENCE) or ArrayRecord()
    asked = hashlib.sha256(repr([orders.get(NOISE_MULTIPLIER), orders.get(CLIPPING_NORM)]).encode())
    for name, array in (*arrays_of(message).items(), *reference.items()):
        asked.update(name.encode() + array.data)
    return Stream(key, "noise", round_of(message), asked.hexdigest())
