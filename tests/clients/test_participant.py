"""Who a client is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Context, Message

from clients.participant import arrays_of, partition_of, round_of, run_workspace
from snnfl.config import Config, ConfigError
from snnfl.workspace import workspace

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]


def test_partition_of_a_node(configure: Configure, context_of: ContextOf) -> None:
    context = context_of(configure(), partition=7)
    assert partition_of(context, clients=8) == 7


@pytest.mark.parametrize("wrong", [-1, 8, 1.0, "1", None])
def test_a_partition_that_does_not_exist_is_an_error(
    configure: Configure, context_of: ContextOf, wrong: object
) -> None:
    context = context_of(configure())
    context.node_config["partition-id"] = wrong  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=rf"partition-id={wrong}: .* from 0 to 7 \(data.clients=8\)") as error:
        partition_of(context, clients=8)
    assert "--node-config" in str(error.value)


def test_clients_of_a_process_share_one_workspace(configure: Configure, context_of: ContextOf) -> None:
    config = configure()
    first, second = (run_workspace(context_of(config, partition)) for partition in (0, 1))
    assert first is second is workspace(config)
    assert run_workspace(context_of(configure("run.seed=1"))) is not first


def test_a_wrong_run_config_is_a_config_error(configure: Configure, context_of: ContextOf) -> None:
    context = context_of(configure())
    context.run_config["training.epoch"] = 1
    with pytest.raises(ConfigError, match=r"training.epoch.* did you mean 'epochs'"):
        run_workspace(context)


def test_a_record_of_another_kind_is_an_error(ask: Ask) -> None:
    message = ask("train", {}, server_round=3)
    assert round_of(message) == 3
    message.content["arrays"] = ConfigRecord()
    with pytest.raises(TypeError, match="record 'arrays' is a ConfigRecord, expected ArrayRecord"):
        arrays_of(message)
