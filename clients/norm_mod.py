"""FedBN as a Flower mod: batch normalisation stays on its client (Li et al. 2021).

The training function sees an ordinary round: the mod completes the received arrays with the client's own gamma, beta,
mean and variance, and takes them out of the reply. It stands inside clipping and an attacker's scaling, which so see
what travels and nothing else.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable

from clients.participant import arrays_of, run_workspace
from clients.private_state import completed
from snnfl.config import client_side
from snnfl.protocol import ARRAYS

PRIVATE_NORMS = "private-norms"


def norm_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Train and evaluate with the client's own batch normalisation, and keep it; other runs pass through."""
    work = run_workspace(context)
    kind, own = message.metadata.message_type.partition(".")[0], work.format.private_names
    if not client_side(work.config).own_normalisation or kind == MessageType.QUERY:
        return call_next(message, context)
    message.content[ARRAYS] = completed(arrays_of(message), context, work, PRIVATE_NORMS)
    reply = call_next(message, context)
    if kind != MessageType.TRAIN or reply.has_error():
        return reply
    trained = arrays_of(reply)
    context.state[PRIVATE_NORMS] = ArrayRecord({name: trained[name] for name in own})
    reply.content[ARRAYS] = ArrayRecord({name: array for name, array in trained.items() if name not in own})
    return reply
