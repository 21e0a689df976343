"""The spiking mod: nothing leaves a client of an S-run but a calibrated spiking network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.client_app import app
from clients.spiking_mod import PRIVATE_BIASES, encoded, spiking_mod
from snnfl import rng
from snnfl.config import Config, ConversionConfig
from snnfl.conversion import convert
from snnfl.data import calibration_batch
from snnfl.models import build_model
from snnfl.private_snn import client_images
from snnfl.training import load_arrays, private_biases
from snnfl.updates import converted_specs
from snnfl.workspace import workspace
from strategies.update import UpdateSpec, check_update

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]
BIASES = ["fc3.bias", "fc4.bias", "fc5.bias"]


def arrays_of(record: ArrayRecord) -> dict[str, Tensor]:
    return dict(record.to_torch_state_dict())


def without_biases(config: Config) -> dict[str, Tensor]:
    """What the server of an S-run sends first."""
    work = workspace(config)
    return {name: array for name, array in work.initial_state.items() if name not in private_biases(work.model)}


class Next:
    """A training function that notes what it gets and answers with given arrays."""

    def __init__(self, trained: dict[str, Tensor] | None = None) -> None:
        self.trained = trained
        self.message: Message | None = None

    def __call__(self, message: Message, context: Context) -> Message:
        self.message, self.context = message, context
        if self.trained is None:
            self.reply = Message(Error(0, "no luck"), reply_to=message)
        else:
            records = {"arrays": ArrayRecord(dict(self.trained)), "metrics": MetricRecord({"num-examples": 3})}
            self.reply = Message(RecordDict(records), reply_to=message)
        return self.reply


@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
def test_a_plain_run_passes_through_untouched(configure: Configure, context_of: ContextOf, ask: Ask, kind: str) -> None:
    config = configure("strategy.spiking=false")
    message, context, following = ask(kind, without_biases(config)), context_of(config), Next({"w": torch.ones(2)})
    before = dict(message.content["arrays"])
    assert spiking_mod(message, context, following) is following.reply
    assert (following.message, following.context) == (message, context)
    assert dict(message.content["arrays"]) == before
    assert arrays_of(following.reply.content["arrays"])["w"].tolist() == [1, 1]
    assert not context.state


@pytest.mark.parametrize("bias_back", [True, False])
def test_an_error_reply_passes_through_and_nothing_is_kept(
    configure: Configure, context_of: ContextOf, ask: Ask, bias_back: bool
) -> None:
    config = configure(f"strategy.bias_back={bias_back}")
    context, following = context_of(config), Next(None)
    reply = spiking_mod(ask("train", without_biases(config)), context, following)
    assert reply is following.reply
    assert reply.error.reason == "no luck"
    assert not context.state


def test_a_query_needs_no_arrays(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    following = Next({})
    message = ask("query")
    assert spiking_mod(message, context_of(configure()), following) is following.reply
    assert not message.content


def test_biases_are_the_common_initial_ones_until_the_client_has_trained(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure()
    context, initial = context_of(config), workspace(config).initial_state
    for kind in ("evaluate", "train", "evaluate"):
        trained = {name: array + 1 for name, array in initial.items()}
        expected = trained if PRIVATE_BIASES in context.state else initial
        following = Next(trained)
        spiking_mod(ask(kind, without_biases(config)), context, following)
        received = arrays_of(following.message.content["arrays"])
        assert received.keys() == initial.keys()
        assert all(torch.equal(received[name], expected[name]) for name in BIASES)
    assert sorted(context.state[PRIVATE_BIASES]) == BIASES


def test_a_server_cannot_replace_the_biases(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure()
    initial = workspace(config).initial_state
    sent = {**without_biases(config), **{name: torch.full_like(initial[name], 7.0) for name in BIASES}}
    following = Next(initial)
    spiking_mod(ask("train", sent), context_of(config), following)
    received = arrays_of(following.message.content["arrays"])
    assert all(torch.equal(received[name], initial[name]) for name in BIASES)


def test_with_bias_back_the_servers_biases_are_taken_and_none_is_kept(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure("strategy.bias_back=true")
    context, following = context_of(config), Next(workspace(config).initial_state)
    sent = {name: array + 2 for name, array in workspace(config).initial_state.items()}
    spiking_mod(ask("train", sent), context, following)
    received = arrays_of(following.message.content["arrays"])
    assert all(torch.equal(received[name], sent[name]) for name in sent)
    assert not context.state


@pytest.mark.parametrize("kind", ["train", "train.default"])
def test_whatever_a_train_message_is_called_only_a_spiking_network_leaves(
    configure: Configure, context_of: ContextOf, ask: Ask, kind: str
) -> None:
    # Flower's ClientApp routes "train.default" to the same function as "train".
    config = configure()
    work, context = workspace(config), context_of(config)
    reply = app(ask(kind, without_biases(config)), context)
    specs = converted_specs(work.graph, work.initial_state, ConversionConfig())
    assert reply.content["arrays"].keys() == specs.keys()
    assert sorted(context.state[PRIVATE_BIASES]) == BIASES


@pytest.mark.parametrize("kind", ["evaluate", "evaluate.default", "query", "query.default"])
def test_other_messages_are_answered_without_arrays(
    configure: Configure, context_of: ContextOf, ask: Ask, kind: str
) -> None:
    config = configure()
    reply = app(ask(kind, without_biases(config)), context_of(config))
    assert set(reply.content) == {"metrics"}


@pytest.mark.parametrize("thresholds", ["layer_mmse", "channel_mmse"])
@pytest.mark.parametrize("model", ["lenet5", "mlp"])
def test_an_update_is_the_converted_network_and_its_batch_normalisation(
    configure: Configure, context_of: ContextOf, ask: Ask, model: str, thresholds: str
) -> None:
    config = configure(f"model.name={model}", f"conversion.thresholds={thresholds}", "model.conv_bias=true")
    work, noise = workspace(config), torch.Generator().manual_seed(0)
    state = {
        name: (array + 0.1 * torch.rand(array.shape, generator=noise)).contiguous()
        for name, array in work.initial_state.items()
    }
    update = encoded(context_of(config, 2), work.format, state, server_round=3)

    images = calibration_batch(work.dataset, work.partitions[2], 32, rng.generator(0, "calibration", 3, 2))
    ann = build_model(config.model, input_shape=(1, 8, 8), classes=10, generator=torch.Generator())
    load_arrays(ann, state)
    expected = dict(convert(ann, images, config.conversion).parameters)
    for layer in work.graph.affines:
        if layer.norm is not None:
            expected[f"{layer.norm}.gamma"] = state[f"{layer.norm}.weight"]
            expected[f"{layer.norm}.beta"] = state[f"{layer.norm}.bias"]
            expected[f"{layer.norm}.mean"] = state[f"{layer.norm}.running_mean"]
            expected[f"{layer.norm}.var"] = state[f"{layer.norm}.running_var"]
    assert update.keys() == expected.keys()
    assert all(torch.equal(update[name], expected[name]) for name in expected)

    reply = Message(
        RecordDict({"arrays": ArrayRecord(update), "metrics": MetricRecord({"num-examples": 1})}),
        reply_to=ask("train"),
    )
    spec = UpdateSpec(
        arrays=converted_specs(work.graph, state, ConversionConfig(thresholds=thresholds)),
        metrics=frozenset({"num-examples"}),
    )
    assert check_update(reply, spec).arrays.keys() == expected.keys()


@pytest.mark.parametrize(
    ("calibration", "hidden"),
    [("none", False), ("bias", True), ("potential", False), ("bias_potential", True), ("time_bias", False)],
)
def test_only_calibration_hides_a_bias_that_no_batch_normalisation_follows(
    configure: Configure, context_of: ContextOf, calibration: str, hidden: bool
) -> None:
    # Folding changes nothing where there is no batch normalisation: what calibration does not shift is published.
    config = configure(f"conversion.calibration={calibration}")
    work = workspace(config)
    update = encoded(context_of(config), work.format, work.initial_state, server_round=1)
    for name in BIASES:
        assert torch.equal(update[name], work.initial_state[name]) != hidden


def test_synthetic_images_are_made_of_the_trained_network_alone(configure: Configure, context_of: ContextOf) -> None:
    config = configure("conversion.data=synthetic", "conversion.synthesis_iterations=3")
    work = workspace(config)
    state = {name: array + 0.01 for name, array in work.initial_state.items()}
    update = encoded(context_of(config, 2), work.format, state, server_round=3)
    draw = rng.generator(config.run.seed, "synthetic calibration", 3, 2)
    images = client_images(work.graph, state, work.dataset, config.conversion, draw)
    assert images.shape == (config.conversion.calibration_images, *work.dataset.input_shape)
    expected = work.format.encode(state, images)
    assert update.keys() == expected.keys()
    assert all(torch.equal(update[name], expected[name]) for name in update)
    private = calibration_batch(work.dataset, work.partitions[2], len(images), rng.generator(0, "calibration", 3, 2))
    assert not torch.equal(images, private)
    others = replace(work.dataset, train_images=work.dataset.train_images.flip(-1))  # in the same range
    with work.holding(others):  # nothing of a client's own pictures is in it
        again = encoded(context_of(config, 2), work.format, state, server_round=3)
    assert all(torch.equal(update[name], again[name]) for name in update)
