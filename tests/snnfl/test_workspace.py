"""What a process keeps for a run."""

from __future__ import annotations

import pytest
import torch

from snnfl.config import ConfigError, compose
from snnfl.data import load, partition
from snnfl.models import build_model
from snnfl.rng import generator
from snnfl.training import exchangeable, load_arrays
from snnfl.workspace import Workspace, workspace


def test_everything_follows_from_the_configuration() -> None:
    config = compose(None, ["data.partition=dirichlet", "run.seed=4", "data.clients=7"])
    work = Workspace(config)
    dataset = load(config.data)
    assert torch.equal(work.dataset.train_images, dataset.train_images)
    expected = partition(dataset.train_labels, config.data, 4)
    assert all(torch.equal(mine, other) for mine, other in zip(work.partitions, expected, strict=True))
    model = build_model(config.model, input_shape=(1, 8, 8), classes=10, generator=generator(4, "initial weights"))
    assert all(torch.equal(work.initial_state[name], array) for name, array in exchangeable(model).items())
    assert work.initial_state.keys() == exchangeable(model).keys()
    assert work.biases == ("fc3.bias", "fc4.bias", "fc5.bias")
    assert [node.name for node in work.graph.affines] == ["conv1", "conv2", "fc3", "fc4", "fc5"]


def test_the_seed_decides_weights_and_partitions() -> None:
    one, other = (Workspace(compose(None, [f"run.seed={seed}", "data.partition=dirichlet"])) for seed in (0, 1))
    assert not torch.equal(one.initial_state["fc5.weight"], other.initial_state["fc5.weight"])
    assert [len(part) for part in one.partitions] != [len(part) for part in other.partitions]


def test_training_the_model_does_not_move_the_initial_state() -> None:
    config = compose(None, ["run.seed=8"])
    work = workspace(config)
    before = {name: array.clone() for name, array in work.initial_state.items()}
    load_arrays(work.model, {name: array + 1 for name, array in before.items()})
    assert all(torch.equal(work.initial_state[name], array) for name, array in before.items())
    assert work.initial_state is workspace(config).initial_state


def test_one_workspace_per_process() -> None:
    config = compose(None, ["run.seed=5"])
    assert workspace(config) is workspace(compose(None, ["run.seed=5"]))
    first = workspace(config)
    workspace(compose(None, ["run.seed=6"]))
    assert workspace(config) is not first  # an earlier run's data and model aren't kept


def test_a_process_gets_its_threads() -> None:
    before = torch.get_num_threads()
    try:
        workspace(compose(None, ["run.threads=2", "run.seed=7"]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "cpu:x", ""])
def test_a_device_that_is_not_there_is_an_error_of_one_line(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"^run.device={device}: not available on this machine \(.*\); use cpu$"):
        _ = Workspace(compose(None, [f"run.device='{device}'"])).device
    assert Workspace(compose()).device == torch.device("cpu")


def test_the_last_round_is_evaluated_on_everything() -> None:
    work = Workspace(compose(None, ["run.rounds=3", "evaluation.images=50"]))
    assert [work.test_images(server_round) for server_round in (1, 2, 3)] == [50, 50, 0]
    assert Workspace(compose(None, ["run.rounds=3"])).test_images(1) == 0


def test_batches_are_laid_out_as_the_weights_of_convolutions() -> None:
    assert Workspace(compose(None, ["model.name=lenet5"])).layout is torch.channels_last
    assert Workspace(compose(None, ["model.name=mlp"])).layout is torch.contiguous_format
