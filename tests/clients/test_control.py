"""SCAFFOLD's client: its control variate stays, what it answers is what the server may know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor

from clients.client_app import app
from clients.control import OWN_CONTROL
from clients.spiking_mod import PRIVATE_BIASES
from snnfl.batching import batch_sizes
from snnfl.config import Config
from snnfl.conversion import recover
from snnfl.training import gradient_weight, private_biases
from snnfl.updates import control_specs
from snnfl.workspace import workspace

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]

SCAFFOLD = ("strategy.name=scaffold", "training.epochs=2")
Arrays = dict[str, Tensor]


def tensors(record: object) -> Arrays:
    return dict(record.to_torch_state_dict())  # type: ignore[attr-defined]


def control_of(config: Config, value: float) -> Arrays:
    specs = control_specs(workspace(config).format.sent_specs)
    return {name: torch.full(spec.shape, value) for name, spec in specs.items()}


def steps_of(config: Config) -> int:
    return 2 * len(batch_sizes(len(workspace(config).partitions[0]), config.training.batch_size))


def asked(ask: Ask, config: Config, control: Arrays, server_round: int = 1) -> Message:
    work = workspace(config)
    message = ask("train", {name: work.initial_state[name] for name in work.format.sent_specs}, server_round)
    message.content["control"] = ArrayRecord(dict(control))
    return message


def test_the_first_round_is_fedavgs_and_the_control_variate_its_mean_gradient(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config, plain = configure(*SCAFFOLD, "strategy.spiking=false"), configure(SCAFFOLD[1], "strategy.spiking=false")
    context, initial = context_of(config), workspace(config).initial_state
    reply = app(asked(ask, config, control_of(config, 0.0)), context)
    update = tensors(reply.content["arrays"])
    fedavg = tensors(app(ask("train", initial), context_of(plain)).content["arrays"])
    for name, array in fedavg.items():
        torch.testing.assert_close(update[name], array, msg=name)
    scale = 0.1 * gradient_weight(steps_of(config), 0.9)
    kept, told = tensors(context.state[OWN_CONTROL]), tensors(reply.content["control"])
    assert kept.keys() == told.keys() == dict(workspace(config).model.named_parameters()).keys()
    for name, array in told.items():
        torch.testing.assert_close(array, (initial[name] - update[name]) / scale, msg=name)
        assert torch.equal(kept[name], array)


def test_its_own_control_variate_adds_up_what_it_has_told(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure(*SCAFFOLD, "strategy.spiking=false")
    context, total = context_of(config), control_of(config, 0.0)
    updates = []
    for server_round in (1, 2):
        reply = app(asked(ask, config, control_of(config, 0.0), server_round), context)
        total = {name: array + total[name] for name, array in tensors(reply.content["control"]).items()}
        updates.append(tensors(reply.content["arrays"])["conv1.weight"])
        kept = tensors(context.state[OWN_CONTROL])
        assert all(torch.equal(kept[name], array) for name, array in total.items())
    fresh = app(asked(ask, config, control_of(config, 0.0), 2), context_of(config))
    assert not torch.equal(tensors(fresh.content["arrays"])["conv1.weight"], updates[1])  # c_i enters its training


def test_the_servers_control_variate_enters_the_training(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure(*SCAFFOLD, "strategy.spiking=false", "training.momentum=0", "training.epochs=1")
    moved = []
    for value in (0.0, 0.01):
        reply = app(asked(ask, config, control_of(config, value)), context_of(config))
        moved.append(tensors(reply.content["arrays"])["fc5.bias"])
    assert bool((moved[0] - moved[1] > 5e-4).all())  # against c, by about its 0.1 * 0.01 per step


def test_in_an_s_run_no_control_variate_of_a_private_bias_travels(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure(*SCAFFOLD)
    work, context = workspace(config), context_of(config)
    biases = set(private_biases(work.model))
    reply = app(asked(ask, config, control_of(config, 0.0)), context)
    told = tensors(reply.content["control"])
    assert told.keys() == dict(work.model.named_parameters()).keys() - biases
    assert set(context.state.array_records) == {OWN_CONTROL, PRIVATE_BIASES}
    # What conversion changes is not in it: it tells the weights as they were trained, to rounding.
    update = tensors(reply.content["arrays"])
    found = recover(work.graph, update, biases=False, minimum_scale=1e-6, fallback=work.initial_state)
    for name, array in told.items():
        expected = (work.initial_state[name] - found[name]) / (0.1 * gradient_weight(steps_of(config), 0.9))
        torch.testing.assert_close(array, expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.pop("conv1.weight"), "'conv1.weight': missing"),
        (lambda c: c.update({"fc3.bias": torch.zeros(120)}), "'fc3.bias': unexpected"),
        (lambda c: c.update({"conv1.weight": torch.zeros(2)}), r"'conv1.weight': expected float32\[6, 1, 3, 3\]"),
        (lambda c: c["conv1.weight"].fill_(float("nan")), "'conv1.weight': holds NaN"),
    ],
    ids=["missing", "private bias", "shape", "nan"],
)
def test_a_client_refuses_another_control_variate_and_trains_nothing(
    configure: Configure, context_of: ContextOf, ask: Ask, change: Callable[[Arrays], object], reason: str
) -> None:
    config = configure(*SCAFFOLD)
    control, context = control_of(config, 0.0), context_of(config)
    change(control)
    with pytest.raises(ValueError, match=f"^control variate of {reason}"):
        app(asked(ask, config, control), context)
    assert not context.state


def test_without_a_control_variate_the_client_says_so(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure(*SCAFFOLD, "strategy.spiking=false")
    with pytest.raises(ValueError, match=r"expected the record 'control' with strategy.name=scaffold, found none"):
        app(ask("train", workspace(config).initial_state), context_of(config))


def test_another_run_answers_no_control_variate(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure("strategy.spiking=false")
    message = ask("train", workspace(config).initial_state)
    message.content["control"] = ArrayRecord(control_of(config, 1.0))
    assert set(app(message, context_of(config)).content) == {"arrays", "metrics"}
