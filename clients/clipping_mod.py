"""The client's half of differential privacy with client-side clipping: Flower's mods, where the run asks for them.

It stands inside the spiking mod: what is clipped is the change of the client's ANN, its private biases included, so the
weights that the server recovers from the spiking network are clipped too.
"""

from __future__ import annotations

from flwr.app import Context, Message, MessageType
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable

from clients.participant import run_workspace

_MODS = {"client_fixed": fixedclipping_mod, "client_adaptive": adaptiveclipping_mod}


def clipping_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip the update of a train message to the norm that the server sends; everything else passes through."""
    mod = _MODS.get(run_workspace(context).config.privacy.clipping)
    if mod is None or message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
        return call_next(message, context)
    return mod(message, context, call_next)
