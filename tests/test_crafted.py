"""A malicious server in a whole federation: what it finds, what it costs it, and a node that notices."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl import rng
from snnfl.attacks import Budget, get_attack
from snnfl.attacks.loki import loki_weights
from snnfl.auditing.recording import RecordingError
from snnfl.auditing.victims import Scope, setting_of, victims_of
from snnfl.config import ConfigError, compose, flatten
from snnfl.metrics.images import matched, psnr
from snnfl.protocol import ARRAYS
from snnfl.workspace import Workspace
from strategies.crafting import Crafting
from strategies.guarded import Guarded
from strategies.run_directory import read_metrics
from strategies.server_app import server_app
from strategies.update import UpdateSpec

LOKI = [
    "model.name=conv_mlp", "audit.crafted=loki", "data.partition=iid", "data.clients=4", "data.training_images=128",
    "training.batch_size=8", "training.learning_rate=0.1", "run.rounds=1", "audit.rounds=[1]",
]  # fmt: skip
SUM = ["strategy.secure_aggregation=true", "strategy.secure_range=0.01"]

SETTING = [
    "data.source=digits", "data.clients=3", "data.training_images=60", "run.rounds=3", "run.name=crafted",
    "model.name=mlp", "model.batch_norm=false", "strategy.spiking=false", "strategy.fraction_train=1.0",
    "training.batch_size=32", "training.epochs=1",
    "training.momentum=0.0", "training.learning_rate=0.2", "audit.record=true", "audit.rounds=[2]",
    "audit.crafted=imprint",
]  # fmt: skip


def test_a_malicious_server_finds_images_that_no_honest_one_would(tmp_path: Path) -> None:
    config = compose(None, [*SETTING, f"run.directory={tmp_path}"])
    run_in_process(server_app(), client_app.app, run_config=flatten(config), clients=config.data.clients)
    first, second, third = read_metrics(tmp_path / "crafted")
    assert second["server_ann_accuracy"] == first["server_ann_accuracy"] != third["server_ann_accuracy"]
    work = Workspace(config)
    victims = victims_of(setting_of(work), tmp_path / "crafted" / "audit", Scope())
    assert [victim.server_round for victim in victims] == [2, 2, 2]
    exact = []
    for victim in victims:
        result = get_attack("imprint").run(victim.view, budget=Budget(), generator=rng.generator(0, "attack"))
        true = work.dataset.pixels(work.dataset.train_images[work.partitions[victim.partition]])
        exact += (psnr(result.images[matched(result.images, true)], true) > 40).tolist()
    assert sum(exact) / len(exact) > 0.8  # of batches of 20


@pytest.mark.parametrize(("options", "share"), [([], 0.4), (SUM, 0.15)], ids=["each update", "their sum"])
def test_loki_finds_images_of_several_steps_and_in_sums(tmp_path: Path, options: list[str], share: float) -> None:
    """Four steps of eight images each; under masks the server has one sum of four such clients, of the same weights."""
    config = compose(None, [*SETTING, *LOKI, *options, f"run.directory={tmp_path}"])
    run_in_process(server_app(), client_app.app, run_config=flatten(config), clients=config.data.clients)
    work = Workspace(config)
    victims = victims_of(setting_of(work), tmp_path / "crafted" / "audit", Scope())
    assert len(victims) == (1 if options else 4)
    for victim in victims:
        assert victim.view.knowledge.steps == 4
        result = get_attack("loki").run(victim.view, budget=Budget(), generator=rng.generator(0, "attack"))
        own = [work.partitions[client] for client in victim.members or [victim.partition]]
        true = work.dataset.pixels(work.dataset.train_images[torch.cat(own)])
        assert (psnr(result.images[matched(result.images, true)], true) > 40).float().mean() > share


def test_no_sum_comes_out_of_weights_of_each_clients_own(tmp_path: Path) -> None:
    """LOKI as published, which tells clients apart in a sum: they notice that they were told different weights."""
    config = compose(None, [*SETTING, *LOKI, *SUM, f"run.directory={tmp_path}"])
    work = Workspace(config)
    data = work.server_data
    public = data.normalise(data.test_images)

    class Singled(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train":
                arrays, client = message.content[ARRAYS], int(context.node_config["partition-id"])
                state = loki_weights(work.model, work.initial_state, public, 0, client=client)
                message.content[ARRAYS] = ArrayRecord({name: state[name] for name in arrays})
            return client_app.app(message, context)

    run_in_process(server_app(), Singled(), run_config=flatten(config), clients=config.data.clients)
    (row,) = read_metrics(tmp_path / "crafted")
    assert (row["aggregated"], row["replies"]) == (False, 0)
    with pytest.raises(RecordingError, match="no recorded update"):
        victims_of(setting_of(work), tmp_path / "crafted" / "audit", Scope())


def test_a_node_that_refuses_crafted_weights_is_in_no_sum_of_them(tmp_path: Path) -> None:
    """Masks don't notice bad weights that are the same for all; whoever looks at its own does."""
    config = compose(None, [*SETTING, *LOKI, *SUM, f"run.directory={tmp_path}"])
    run_in_process(
        server_app(),
        client_app.app,
        run_config=flatten(config),
        clients=config.data.clients,
        node_config={"refuse-crafted": True},
    )
    (row,) = read_metrics(tmp_path / "crafted")
    assert (row["failed"], row["replies"]) == (4, 0)
    with pytest.raises(RecordingError, match="no recorded update"):
        victims_of(setting_of(Workspace(config)), tmp_path / "crafted" / "audit", Scope())


def test_an_optimiser_of_the_server_forgets_a_crafted_round(tmp_path: Path) -> None:
    class Remembering(FedAvg):
        momentum = 0

        def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
            self.momentum = self.momentum + server_round
            return None, None

    work = Workspace(compose(None, [*SETTING, f"run.directory={tmp_path}"]))
    base = Remembering(fraction_train=0.0)
    guarded = Guarded(base, UpdateSpec(arrays={}, metrics=frozenset()), seed=0, minimum_replies=0)
    crafting, sent = Crafting(guarded, work, [2]), ArrayRecord(dict(work.initial_state))
    for server_round in (1, 2, 3):
        crafting.configure_train(server_round, sent, ConfigRecord(), cast(Grid, None))
        arrays, _ = crafting.aggregate_train(server_round, [])
        assert (arrays is sent) == (server_round == 2)
    assert base.momentum == 1 + 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("audit.rounds=[]", "name them in audit.rounds"),
        ("strategy.spiking=true", "an S-run's server doesn't send"),
        ("model.neuron=lif", "sorts by ReLU"),
        ("audit.crafted=loki strategy.secure_aggregation=true", "secure_range=64; set 0.01 or less"),
    ],
)
def test_what_makes_no_sense_is_refused(change: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        compose(None, [*SETTING, *change.split()])


@pytest.mark.parametrize(("options", "instead"), [([], "mlp"), (["audit.crafted=loki"], "conv_mlp")])
def test_a_model_that_cannot_be_crafted_is_refused_before_anything_is_sent(
    tmp_path: Path, options: list[str], instead: str
) -> None:
    config = compose(None, [*SETTING, *options, "model.name=lenet5", f"run.directory={tmp_path}"])
    with pytest.raises(ConfigError, match=f"two linear layers.*model.name={instead}"):
        run_in_process(server_app(), client_app.app, run_config=flatten(config), clients=config.data.clients)
