"""FedBN's client: its batch normalisation stays with it, in training, evaluation and under clipping."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import Context, Error, Message
from torch import Tensor

from clients.client_app import app, train
from clients.norm_mod import PRIVATE_NORMS, norm_mod
from snnfl.config import Config, ConfigError
from snnfl.training import normalisation
from snnfl.workspace import Workspace, workspace

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]

FEDBN = ("strategy.name=fedbn", "strategy.spiking=false")


def shared(config: Config) -> dict[str, Tensor]:
    work = workspace(config)
    return {name: array for name, array in work.initial_state.items() if name not in work.format.private_names}


def tensors(record: object) -> dict[str, Tensor]:
    return dict(record.to_torch_state_dict())  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["train", "train.default"])
def test_no_array_of_batch_normalisation_travels(
    configure: Configure, context_of: ContextOf, ask: Ask, kind: str
) -> None:
    config = configure(*FEDBN)
    context = context_of(config)
    private = {f"norm{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias", "running_mean", "running_var")}
    assert private == set(workspace(config).format.private_names)
    reply = app(ask(kind, shared(config)), context)
    assert list(reply.content["arrays"]) == list(shared(config))
    assert set(context.state[PRIVATE_NORMS]) == private


def test_a_client_goes_on_with_its_own_whatever_the_server_sends(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure(*FEDBN)
    context, initial = context_of(config), workspace(config).initial_state
    own = {name: initial[name] for name in workspace(config).format.private_names}
    for server_round, forged in ((1, False), (2, False), (3, True)):
        received: dict[str, Tensor] = {}

        def following(message: Message, context: Context, received: dict[str, Tensor] = received) -> Message:
            received |= tensors(message.content["arrays"])
            return train(message, context)

        extra = {name: array + 7 for name, array in own.items()} if forged else {}
        norm_mod(ask("train", {**shared(config), **extra}, server_round), context, following)
        assert list(received) == list(initial)
        assert all(torch.equal(received[name], array) for name, array in own.items())
        own = tensors(context.state[PRIVATE_NORMS])
        assert not torch.equal(own["norm1.running_mean"], received["norm1.running_mean"])


def test_evaluation_is_with_the_clients_own_and_changes_nothing(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure(*FEDBN, "training.epochs=3")
    fresh, context = context_of(config), context_of(config)
    trained = tensors(app(ask("train", shared(config)), context).content["arrays"])
    before = tensors(context.state[PRIVATE_NORMS])
    losses = [app(ask("evaluate", trained), each).content["metrics"]["loss"] for each in (context, fresh)]
    assert losses[0] < losses[1]  # the initial batch normalisation doesn't fit the trained weights
    assert all(torch.equal(array, before[name]) for name, array in tensors(context.state[PRIVATE_NORMS]).items())
    assert not fresh.state


def test_what_is_clipped_is_what_travels(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure(*FEDBN, "privacy.mechanism=local")
    message = ask("train", shared(config))
    message.content["config"].update({"clipping_norm": 0.05, "noise-multiplier": 0.0})
    update = tensors(app(message, context_of(config)).content["arrays"])
    moved = sum(((update[name] - array).double() ** 2).sum() for name, array in shared(config).items())
    assert float(moved) ** 0.5 == pytest.approx(0.05, rel=1e-4)


def test_an_error_reply_passes_and_nothing_is_kept(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure(*FEDBN)
    context = context_of(config)
    failed = norm_mod(ask("train", shared(config)), context, lambda m, c: Message(Error(7, "no luck"), reply_to=m))
    assert failed.error.reason == "no luck"
    assert not context.state


@pytest.mark.parametrize("options", [["strategy.spiking=false"], [], ["strategy.name=solo"]])
def test_other_runs_pass_through(configure: Configure, context_of: ContextOf, ask: Ask, options: list[str]) -> None:
    config = configure(*options)
    message, context = ask("train", workspace(config).initial_state), context_of(config)
    before = dict(message.content["arrays"])
    assert norm_mod(message, context, lambda m, c: m) is message
    assert dict(message.content["arrays"]) == before
    assert not context.state


def test_a_model_without_batch_normalisation_is_refused(configure: Configure) -> None:
    work = Workspace(configure(*FEDBN, "model.batch_norm=false"))
    assert normalisation(work.initial_state) == ()
    with pytest.raises(ConfigError, match=r"^strategy.name=fedbn: model.name=lenet5 has no batch normalisation"):
        _ = work.format
