"""Client-side clipping: what is clipped is the ANN, private biases included, before it is converted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import Context, Message

from clients.client_app import app
from clients.clipping_mod import clipping_mod
from clients.spiking_mod import PRIVATE_BIASES
from snnfl.config import Config
from snnfl.conversion import recover
from snnfl.protocol import train_metrics
from snnfl.training import load_arrays
from snnfl.workspace import Workspace, workspace

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return float(sum(((one[name] - other[name]).double() ** 2).sum() for name in one)) ** 0.5


def asked(ask: Ask, config: Config, norm: float) -> Message:
    work = workspace(config)
    private = work.format.private_names
    message = ask("train", {n: a for n, a in work.initial_state.items() if n not in private})
    message.content["config"]["clipping_norm"] = norm
    return message


@pytest.mark.parametrize("norm", [0.05, 1e9])
@pytest.mark.parametrize("clipping", ["client_fixed", "client_adaptive"])
def test_a_plain_update_is_clipped(
    configure: Configure, context_of: ContextOf, ask: Ask, clipping: str, norm: float
) -> None:
    config = configure(f"privacy.clipping={clipping}", "strategy.spiking=false")
    reply = app(asked(ask, config, norm), context_of(config))
    moved = distance(dict(reply.content["arrays"].to_torch_state_dict()), workspace(config).initial_state)
    assert moved == pytest.approx(0.05, rel=1e-4) if norm < 1 else moved > 0.1
    assert frozenset(reply.content["metrics"]) == train_metrics(config)
    if clipping == "client_adaptive":
        assert reply.content["metrics"]["norm_bit"] == (norm < 1)


@pytest.mark.parametrize("clipping", ["client_fixed", "client_adaptive"])
def test_the_weights_recovered_from_a_spiking_update_are_clipped(
    configure: Configure, context_of: ContextOf, ask: Ask, clipping: str
) -> None:
    config = configure(f"privacy.clipping={clipping}")
    work, context = workspace(config), context_of(config)
    reply = app(asked(ask, config, 0.05), context)
    update = dict(reply.content["arrays"].to_torch_state_dict())
    state = recover(work.graph, update, biases=False, minimum_scale=1e-6, fallback=work.initial_state)
    biases = context.state[PRIVATE_BIASES].to_torch_state_dict()
    assert distance({**state, **biases}, work.initial_state) == pytest.approx(0.05, rel=1e-3)
    assert frozenset(reply.content["metrics"]) == train_metrics(config)
    # The network that leaves is that of the clipped model.
    own = Workspace(config)
    load_arrays(own.model, {**state, **biases})
    torch.testing.assert_close(update["fc5.weight"], own.model.fc5.weight.detach())


@pytest.mark.parametrize(
    ("clipping", "kind"), [("none", "train"), ("server_fixed", "train"), ("client_fixed", "evaluate")]
)
def test_everything_else_passes_through(
    configure: Configure, context_of: ContextOf, ask: Ask, clipping: str, kind: str
) -> None:
    config = configure(f"privacy.clipping={clipping}")
    message = ask(kind, workspace(config).initial_state)
    reply = Message(message.content, reply_to=message)
    assert clipping_mod(message, context_of(config), lambda given, context: reply) is reply
