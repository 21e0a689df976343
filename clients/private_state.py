"""What a client keeps for itself between rounds: MOON's previous model, SOLO's own, arrays that never travel."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context

from snnfl.workspace import Workspace

OWN_MODEL = "own-model"


def own_model(context: Context, work: Workspace) -> ArrayRecord:
    """Return the client's model after its last local training; before any, the common initial one."""
    kept = context.state.get(OWN_MODEL)
    return kept if isinstance(kept, ArrayRecord) else ArrayRecord(dict(work.initial_state))


def keep_own_model(context: Context, arrays: ArrayRecord) -> None:
    """Keep the client's model. It stays in ``context.state``, which never travels."""
    context.state[OWN_MODEL] = arrays.copy()


def completed(received: ArrayRecord, context: Context, work: Workspace, record: str) -> ArrayRecord:
    """Return the received arrays with those that stay on the client, in the model's order.

    Args:
        received: What the server has sent.
        context: Holds the client's own arrays, ``work.format.private_names``, as its last training left them; before
            any, they are those of the common initial weights.
        work: Of this process.
        record: Under which name ``context.state`` holds them.
    """
    own, initial = context.state.get(record), work.initial_state
    if not isinstance(own, ArrayRecord):
        own = ArrayRecord({name: initial[name] for name in work.format.private_names})
    complete = {**received, **own}
    return ArrayRecord({name: complete[name] for name in initial if name in complete} | complete)
