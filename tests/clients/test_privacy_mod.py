"""Local differential privacy: all that leaves a client is clipped as one vector and noised, with a key of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message

from clients.client_app import app
from clients.privacy_mod import NOISE_KEY, privacy_mod
from snnfl.config import Config
from snnfl.privacy.clipping import Layout
from snnfl.protocol import train_metrics
from snnfl.updates.coordinates import coordinates, origin
from snnfl.workspace import workspace

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]


def asked(ask: Ask, config: Config, *, norm: float, noise: float, server_round: int = 1) -> Message:
    work = workspace(config)
    message = ask("train", {n: a for n, a in work.initial_state.items() if n in work.format.sent_specs}, server_round)
    message.content["config"].update({"clipping_norm": norm, "noise-multiplier": noise})
    return message


def moved(config: Config, reply: Message) -> np.ndarray:
    """Return how an update differs from what everybody knows, as the vector that is clipped."""
    format, initial = workspace(config).format, workspace(config).initial_state
    sent = {name: initial[name] for name in format.sent_specs}
    start = origin(format, sent)
    layout = Layout({name: tuple(array.shape) for name, array in start.items()})
    update = dict(reply.content["arrays"].to_torch_state_dict())
    return layout.vector(coordinates(format, update, sent)) - layout.vector(start)


@pytest.mark.parametrize("kind", ["strategy.spiking=false", "strategy.spiking=true"])
@pytest.mark.parametrize("norm", [0.01, 1e9])
def test_what_leaves_is_clipped_as_one_vector(
    configure: Configure, context_of: ContextOf, ask: Ask, kind: str, norm: float
) -> None:
    config = configure("privacy.mechanism=local", kind, "model.batch_norm=false")
    reply = app(asked(ask, config, norm=norm, noise=0.0), context_of(config))
    length = np.linalg.norm(moved(config, reply))
    if norm < 1:
        assert length == pytest.approx(0.01, rel=0.03)
    else:
        assert length > 0.02  # and not shortened to the other bound
    assert frozenset(reply.content["metrics"]) == train_metrics(config)


@pytest.mark.parametrize("kind", ["strategy.spiking=false", "strategy.spiking=true"])
def test_every_coordinate_is_noised(configure: Configure, context_of: ContextOf, ask: Ask, kind: str) -> None:
    config = configure("privacy.mechanism=local", kind, "model.batch_norm=false", "privacy.noise_seed=1")
    found = moved(config, app(asked(ask, config, norm=1e-3, noise=100.0), context_of(config)))
    assert found.std() == pytest.approx(0.1, rel=0.02)
    assert np.abs(found).min() > 0


def test_a_question_that_is_asked_again_has_the_same_noise_and_another_one_has_not(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure("privacy.mechanism=local", "strategy.spiking=false", "model.batch_norm=false")
    context = context_of(config)
    question = {"norm": 1e-9, "noise": 1.0}
    first = moved(config, app(asked(ask, config, **question), context))
    assert NOISE_KEY in context.state
    np.testing.assert_array_equal(moved(config, app(asked(ask, config, **question), context)), first)
    others = [
        app(asked(ask, config, **question, server_round=2), context),
        app(asked(ask, config, **question), context_of(config)),  # another client's key
    ]
    changed = asked(ask, config, **question)
    arrays = changed.content["arrays"].to_torch_state_dict()
    changed = ask("train", {name: array + 1e-4 for name, array in arrays.items()})
    changed.content["config"].update({"clipping_norm": 1e-9, "noise-multiplier": 1.0})
    less = app(asked(ask, config, norm=1e-9, noise=0.99), context)  # it would be 0.99 times what the first had
    for reply in (*others, app(changed, context), less):
        assert np.corrcoef(moved(config, reply), first)[0, 1] < 0.1


@pytest.mark.parametrize(("mechanism", "kind"), [("none", "train"), ("central", "train"), ("local", "evaluate")])
def test_everything_else_passes_through(
    configure: Configure, context_of: ContextOf, ask: Ask, mechanism: str, kind: str
) -> None:
    config = configure(f"privacy.mechanism={mechanism}")
    message = ask(kind, workspace(config).initial_state)
    reply = Message(message.content, reply_to=message)
    assert privacy_mod(message, context_of(config), lambda given, context: reply) is reply


def test_training_by_dp_sgd_moves_by_the_noise_and_reports_all_samples(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure(
        "privacy.mechanism=example", "strategy.spiking=false", "model.batch_norm=false", "privacy.noise_seed=3",
        "privacy.clipping_norm=0.01", "training.momentum=0", "training.weight_decay=0", "training.learning_rate=1",
    )  # fmt: skip
    message = asked(ask, config, norm=1.0, noise=200.0)
    reply = app(message, context_of(config))
    samples = len(workspace(config).partitions[0])
    assert reply.content["metrics"]["num-examples"] == samples
    steps = -(-samples // config.training.batch_size)
    update = dict(reply.content["arrays"].to_torch_state_dict())
    change = torch.cat([(update[name] - array).flatten() for name, array in workspace(config).initial_state.items()])
    expected = min(config.training.batch_size, samples)
    assert change.std().item() == pytest.approx(200 * 0.01 / expected * steps**0.5, rel=0.05)


def test_a_first_round_that_is_repeated_has_the_same_noise(
    configure: Configure, context_of: ContextOf, ask: Ask, tmp_path: Path
) -> None:
    """A client's state is put back to what it was before the round, but for the key: it is no result of training."""
    config = configure("privacy.mechanism=local", "strategy.spiking=false", "model.batch_norm=false")
    found: list[np.ndarray] = []
    for _ in range(2):
        context = context_of(config)  # of a process that has begun anew
        context.node_config["state-directory"] = str(tmp_path)
        message = asked(ask, config, norm=1e-9, noise=1.0)
        message.content["config"].update({"run-token": "0" * 32, "oldest-round": 0})
        found.append(moved(config, app(message, context)))
    np.testing.assert_array_equal(*found)
