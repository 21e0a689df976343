"""The packing mod: few bits leave, what rounding leaves out stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.client_app import app
from clients.packing_mod import LEFT_OUT, packing_mod
from snnfl.config import Config
from snnfl.updates import CODES, SCALES
from snnfl.workspace import workspace
from strategies.update import UpdateRefused, UpdateSpec, check_update

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]
PLAIN = "strategy.spiking=false"


def answering(arrays: dict[str, Tensor] | None) -> Callable[[Message, Context], Message]:
    def answer(message: Message, context: Context) -> Message:
        if arrays is None:
            return Message(Error(0, "no luck"), reply_to=message)
        records = {"arrays": ArrayRecord(dict(arrays)), "metrics": MetricRecord({"num-examples": 3})}
        return Message(RecordDict(records), reply_to=message)

    return answer


def test_few_bits_leave_as_bytes_and_the_rest_stays(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure(PLAIN, "quantization.uploads=4")
    work, context = workspace(config), context_of(config)
    sent = work.initial_state
    trained = {name: array + 0.01 * torch.randn(array.shape, generator=torch.Generator().manual_seed(1)).abs()
               for name, array in sent.items()}  # fmt: skip
    reply = packing_mod(ask("train", sent), context, answering(trained))
    arrays = reply.content["arrays"]
    assert work.packing is not None
    assert set(arrays) == set(work.packing.specs)
    assert arrays[CODES].dtype == "uint8"
    assert len(arrays[CODES].data) < work.packing.count / 2 + 200
    read = work.packing.decode({name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}, sent)
    left = context.state[LEFT_OUT].to_torch_state_dict()
    for name in work.packing.names:
        assert torch.allclose(read[name] + left[name], trained[name], atol=1e-6)
        assert left[name].any()
    assert not set(arrays) & set(work.packing.names)


def test_what_stays_enters_the_next_round(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure(PLAIN, "quantization.uploads=2")
    work, context = workspace(config), context_of(config)
    sent, told = work.initial_state, torch.zeros(84, 120)
    for server_round in range(1, 4):
        trained = {**sent, "fc4.weight": sent["fc4.weight"] + 0.01}
        reply = packing_mod(ask("train", sent, server_round), context, answering(trained))
        packed = {name: torch.from_numpy(array.numpy()) for name, array in reply.content["arrays"].items()}
        assert work.packing is not None
        told = told + work.packing.decode(packed, sent)["fc4.weight"] - sent["fc4.weight"]
        left = context.state[LEFT_OUT].to_torch_state_dict()["fc4.weight"]
        assert torch.allclose(told + left, torch.full_like(told, server_round * 0.01), atol=1e-6)


def test_what_is_no_update_passes_through(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure(PLAIN, "quantization.uploads=4")
    sent, context = workspace(config).initial_state, context_of(config)
    assert packing_mod(ask("train", sent), context, answering(None)).has_error()
    reply = packing_mod(ask("evaluate", sent), context, answering({"w": torch.ones(2)}))
    assert set(reply.content["arrays"]) == {"w"}
    assert not context.state


@pytest.mark.parametrize("options", [(PLAIN,), (), (PLAIN, "model.neuron=lif", "model.time_steps=2")])
def test_a_server_reads_what_a_whole_client_sends(
    configure: Configure, context_of: ContextOf, ask: Ask, options: tuple[str, ...]
) -> None:
    from snnfl.protocol import train_metrics

    config = configure(*options, "quantization.uploads=8")
    work, context = workspace(config), context_of(config)
    sent = {name: work.initial_state[name] for name in work.format.sent_specs}
    reply = app(ask("train", sent), context)
    spec = UpdateSpec(arrays=work.format.specs, metrics=train_metrics(config), packing=work.packing)
    update = check_update(reply, spec, sent)
    assert set(update.arrays) == set(work.format.specs)
    assert set(update.received) == set(work.packing.specs)  # type: ignore[union-attr]
    assert LEFT_OUT in context.state


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (SCALES, np.full(12, np.nan, np.float32), "NaN"),
        (SCALES, np.full(12, -1, np.float32), "negative"),
        (SCALES, np.full(12, 9e11, np.float32), "unpacked"),
        (SCALES, np.zeros(11, np.float32), "float32"),
        (CODES, np.zeros(4, np.uint8), "uint8"),
        (CODES, np.zeros(9892, np.float32), "uint8"),
        (CODES, None, "the code 8"),
    ],
)
def test_hostile_packages_are_refused_in_a_line(
    configure: Configure, context_of: ContextOf, ask: Ask, name: str, values: np.ndarray | None, message: str
) -> None:
    config = configure(PLAIN, "quantization.uploads=4")
    work, context = workspace(config), context_of(config)
    assert work.packing is not None
    sent = work.initial_state
    trained = {name: array + 0.01 for name, array in sent.items()}
    reply = packing_mod(ask("train", sent), context, answering(trained))
    if values is None:
        values = np.full(work.packing.specs[CODES].shape, 255, np.uint8)
    reply.content["arrays"] = ArrayRecord({**reply.content["arrays"].to_torch_state_dict(), name: torch.tensor(values)})
    spec = UpdateSpec(arrays=work.format.specs, metrics=frozenset({"num-examples"}), packing=work.packing)
    with pytest.raises(UpdateRefused, match=message) as refusal:
        check_update(reply, spec, sent)
    assert "\n" not in str(refusal.value)
