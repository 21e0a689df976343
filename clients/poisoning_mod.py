"""Poisoning clients as Flower mods; what the others do doesn't change (SNFL section 5.4).

Two places are an attacker's. Around the spiking mod it trains and calibrates on poisoned data, scales what leaves and
may forge its thresholds. Inside it, but around clipping, it scales the ANN: a liar doesn't clip what it sends.
"""

from __future__ import annotations

import copy

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from clients.arrays import to_record, to_tensors
from clients.participant import arrays_of, client_data, partition_of, round_of, run_workspace
from snnfl.config import sampled_clients
from snnfl.conversion.folding import fold
from snnfl.poisoning import POISONINGS, attacks_in, forged, poisoned, scaled, scaled_spiking
from snnfl.protocol import ARRAYS
from snnfl.workspace import Workspace


def poisoning_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let an attacker train on poisoned data, and scale or forge what leaves; others pass through."""
    work = run_workspace(context)
    if not _attacks(work, message, context):
        return call_next(message, context)
    partition = partition_of(context, work.config.data.clients)
    received = to_tensors(arrays_of(message))
    honest = _honest_reply(message, context, call_next) if work.config.poisoning.forge_thresholds else None
    data = client_data(context)
    with work.holding(poisoned(data.dataset, data.indices, work.config, partition=partition)):
        reply = call_next(message, context)
    if _scales(work, spiking=True):
        update = scaled_spiking(fold(work.graph, received), to_tensors(arrays_of(reply)), _factor(work))
        reply.content[ARRAYS] = to_record(update)
    if honest is not None:
        update, model = (to_tensors(arrays_of(each)) for each in (reply, honest))
        reply.content[ARRAYS] = to_record(forged(update, model))
    return reply


def scaling_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Scale an attacker's ANN for model replacement, if that is what leaves; everything else passes through."""
    work = run_workspace(context)
    if not _scales(work, spiking=False) or not _attacks(work, message, context):
        return call_next(message, context)
    received = to_tensors(arrays_of(message))
    reply = call_next(message, context)
    reply.content[ARRAYS] = to_record(scaled(received, to_tensors(arrays_of(reply)), _factor(work)))
    return reply


def _scales(work: Workspace, *, spiking: bool) -> bool:
    """Tell whether the run's attackers scale their spiking update, or their ANN."""
    poisoning = work.config.poisoning
    update = work.format.kind == "converted" and not poisoning.scale_ann
    return poisoning.attack != "none" and POISONINGS.find(poisoning.attack).scales and update == spiking


def _factor(work: Workspace) -> float:
    """Return what attackers scale by."""
    poisoning = work.config.poisoning
    selected = sampled_clients(work.config)
    return max(1.0, selected / poisoning.attackers) if poisoning.scale is None else poisoning.scale


def _attacks(work: Workspace, message: Message, context: Context) -> bool:
    """Tell whether this client attacks with its reply to a message."""
    if work.config.poisoning.attack == "none" or message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
        return False
    return partition_of(context, work.config.data.clients) in attacks_in(work.config, round_of(message))


def _honest_reply(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer a message as an honest client would, and leave no trace of it: the message and the state are as before."""
    before, own = dict(context.state), copy.copy(message)
    own.content = RecordDict({name: record.copy() for name, record in message.content.items()})
    reply = call_next(own, context)
    context.state = RecordDict(before)
    return reply
