"""SCAFFOLD's client: its own control variate, which stays with it, and what of it travels."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message
from torch import Tensor

from clients.arrays import to_record, to_tensors
from clients.participant import arrays_of, round_of
from snnfl.protocol import CONTROL
from snnfl.training import control_change, gradient_weight, learning_rate
from snnfl.updates import control_specs
from snnfl.workspace import Workspace

OWN_CONTROL = "own-control"


def correction(message: Message, context: Context, work: Workspace) -> dict[str, Tensor]:
    """Return ``c - c_i``, by which the client's gradients are corrected."""
    own = _own(context)
    return {name: array - own[name] if own else array for name, array in _received(message, work).items()}


def renewed(message: Message, context: Context, work: Workspace, steps: int) -> ArrayRecord:
    """Renew the client's control variate after its training; return by how much, which is what the server learns.

    Args:
        message: Holds ``x`` and ``c``.
        context: Keeps the client's own.
        work: Holds ``y``, the trained model.
        steps: Of the optimiser.
    """
    config, control = work.config.training, _received(message, work)
    scale = learning_rate(config, round_of(message)) * gradient_weight(steps, config.momentum)
    change = control_change(to_tensors(arrays_of(message)), work.arrays, control, scale)
    own = _own(context)
    context.state[OWN_CONTROL] = to_record({n: own[n] + array if own else array for n, array in change.items()})
    return to_record(change)


def _own(context: Context) -> dict[str, Tensor]:
    """Return the client's control variate; nothing before its first training, when it is zero."""
    kept = context.state.get(OWN_CONTROL)
    return to_tensors(kept) if isinstance(kept, ArrayRecord) else {}


def _received(message: Message, work: Workspace) -> dict[str, Tensor]:
    """Return the server's control variate.

    Raises:
        ValueError: If it isn't of exactly the parameters that travel: what a client answers would tell the others.
    """
    record, specs = message.content.get(CONTROL), control_specs(work.format.sent_specs)
    if not isinstance(record, ArrayRecord):
        raise ValueError(f"expected the record {CONTROL!r} with strategy.name=scaffold, found none")
    found = to_tensors(record)
    if wrong := sorted(found.keys() ^ specs.keys()):
        raise ValueError(f"control variate of {wrong[0]!r}: {'missing' if wrong[0] in specs else 'unexpected'}")
    for name, array in found.items():
        if (mistake := specs[name].mistake(array)) is not None:
            raise ValueError(f"control variate of {name!r}: {mistake}")
    return found
