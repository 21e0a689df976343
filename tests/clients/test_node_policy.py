"""What a node refuses whatever the run asks, and where it looks for its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor

from clients.node_policy import NodePolicyError, node_policy
from clients.participant import run_workspace
from snnfl import rng
from snnfl.attacks.imprint import imprinted
from snnfl.config import Config, ConfigError, ModelConfig
from snnfl.models import build_model
from snnfl.training import exchangeable

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]


def answer(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)


@pytest.fixture
def called(configure: Configure, context_of: ContextOf, ask: Callable[..., Message]) -> Callable[..., bool]:
    """Tell whether a message of a run with these options reaches the client."""

    def call(kind: str, *overrides: str, required: object = True) -> bool:
        context = context_of(configure(*overrides))
        if required is not None:
            context.node_config["require-spiking"] = required  # type: ignore[assignment]
        return node_policy(ask(kind, {}, 1), context, answer).has_content()

    return call


NATIVE = ("strategy.spiking=false", "model.neuron=lif")
REFUSED = {
    "strategy.spiking=false": "strategy.spiking=false uploads ordinary networks",
    "strategy.bias_back=true": "strategy.bias_back=true gives the server",
    "strategy.name=scaffold": "strategy.name=scaffold uploads control variates",
    "conversion.calibration=none": "conversion.calibration=none shifts no bias of fc3, fc4, fc5 before upload",
    "conversion.calibration=potential": "conversion.calibration=potential shifts no bias",
    "model.projection_head=true": "conversion.calibration=bias shifts no bias of projection2 before upload",
}


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
@pytest.mark.parametrize("option", REFUSED)
def test_a_node_that_requires_spiking_refuses_every_message_of_another_run(
    called: Callable[..., bool], option: str, kind: str
) -> None:
    with pytest.raises(NodePolicyError, match=f"{REFUSED[option]}.*require-spiking=true$"):
        called(kind, option)
    assert called(kind, option, required=False)
    assert called(kind, option, required=None)


def test_a_node_that_requires_spiking_refuses_networks_that_are_sent_as_they_were_trained(
    called: Callable[..., bool],
) -> None:
    with pytest.raises(NodePolicyError, match=r"model.neuron=lif uploads spiking networks as they were trained"):
        called("train", *NATIVE)
    assert called("train", *NATIVE, "strategy.name=solo")


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_node_that_requires_masks_takes_part_in_no_run_without(
    configure: Configure, context_of: ContextOf, ask: Callable[..., Message], kind: str
) -> None:
    context, masked = context_of(configure()), context_of(configure("strategy.secure_aggregation=true"))
    assert node_policy(ask(kind, {}, 1), context, answer).has_content()
    for each in (context, masked):
        each.node_config["require-secure-aggregation"] = True
    refused = r"strategy\.secure_aggregation=false asks .* require-secure-aggregation="
    with pytest.raises(NodePolicyError, match=refused):
        node_policy(ask(kind, {}, 1), context, answer)
    assert node_policy(ask(kind, {}, 1), masked, answer).has_content()


@pytest.mark.parametrize("option", ["strategy.name=moon", "conversion.calibration=bias_potential"])
def test_it_takes_part_in_a_spiking_run(called: Callable[..., bool], option: str) -> None:
    assert called("train", option)


def test_a_solo_client_uploads_no_network(called: Callable[..., bool]) -> None:
    assert called("train", "strategy.name=solo", "strategy.spiking=false")


def test_a_policy_that_is_neither_yes_nor_no_is_an_error(called: Callable[..., bool]) -> None:
    with pytest.raises(ConfigError, match="require-spiking='true': expected true or false, without quotes"):
        called("query", required="true")


def test_a_node_names_its_own_data_folder(configure: Configure, context_of: ContextOf, tmp_path: Path) -> None:
    context = context_of(configure(f"data.root={tmp_path / 'of the server'}"))
    assert run_workspace(context).config.data.root == str(tmp_path / "of the server")
    context.node_config["data-root"] = str(tmp_path / "own")
    assert run_workspace(context).config.data.root == str(tmp_path / "own")
    context = context_of(configure("data.source=mnist"))
    context.node_config["data-root"] = str(tmp_path / "own")
    with pytest.raises(ConfigError, match=str(tmp_path / "own")):
        run_workspace(context)


def test_a_node_that_names_its_data_reads_no_weights_that_the_server_names(
    configure: Configure, context_of: ContextOf, tmp_path: Path
) -> None:
    context = context_of(configure("model.weights=/etc/passwd"))
    context.node_config["data-root"] = str(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.weights=/etc/passwd: this node reads no file that its server names"):
        run_workspace(context)


def test_a_node_that_names_its_own_data_looks_below_no_folder_that_the_server_names(
    configure: Configure, context_of: ContextOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNNFL_DATA", str(tmp_path / "public"))
    context = context_of(configure("data.source=mnist", f"data.root={tmp_path / 'secret'}"))
    with pytest.raises(ConfigError, match=str(tmp_path / "secret")):
        run_workspace(context)
    context.node_config["data-path"] = str(tmp_path / "ours.npz")
    with pytest.raises(ConfigError, match=str(tmp_path / "public")):
        run_workspace(context)


@pytest.fixture
def trained(configure: Configure, context_of: ContextOf, ask: Callable[..., Message]) -> Callable[..., bool]:
    """Tell whether a train message with these arrays reaches a client that refuses crafted weights."""

    def call(kind: str, arrays: dict[str, Tensor], refuse: object = True) -> bool:
        context = context_of(configure("model.name=mlp", "model.batch_norm=false", "strategy.spiking=false"))
        context.node_config["refuse-crafted"] = refuse  # type: ignore[assignment]
        return node_policy(ask(kind, arrays, 1), context, answer).has_content()

    return call


def test_a_node_that_refuses_crafted_weights_trains_none(trained: Callable[..., bool]) -> None:
    model = build_model(
        ModelConfig(name="mlp", batch_norm=False),
        input_shape=(1, 8, 8),
        classes=10,
        generator=rng.generator(0, "weights"),
    )
    honest = exchangeable(model)
    public = torch.rand(100, 1, 8, 8, generator=rng.generator(0, "public"))
    crafted = imprinted(model, honest, public, seed=0)
    assert trained("train", honest)
    with pytest.raises(NodePolicyError, match=r"look crafted.*refuse-crafted=true$"):
        trained("train", crafted)
    assert trained("evaluate", crafted)
    assert trained("train", crafted, refuse=False)
    with pytest.raises(ConfigError, match="refuse-crafted='yes': expected true or false"):
        trained("train", honest, refuse="yes")
