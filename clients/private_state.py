"""The model that a client keeps for itself between rounds: MOON's previous model, SOLO's own."""

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
