"""What a process keeps for a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from snnfl.config import ConfigError, ModelConfig, compose
from snnfl.data import load, partition, register
from snnfl.models import build_model, registry
from snnfl.rng import generator
from snnfl.spiking import ConversionError
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
    assert work.format.private_names == ("fc3.bias", "fc4.bias", "fc5.bias")
    assert [node.name for node in work.graph.affines] == ["conv1", "conv2", "fc3", "fc4", "fc5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["model.name=mlp", "training.batch_size=1"],
            r"training.batch_size=1: norm1 of model.name=mlp cannot .*; take",
        ),
        (
            ["model.name=mlp", "data.clients=1437", "data.minimum_samples=1"],
            r"data.minimum_samples=1: client 0 has a single training sample, and norm1 of model.name=mlp cannot",
        ),
        (["model.name=mlp", "training.batch_size=2"], None),
        (["model.name=mlp", "training.micro_batch=1"], r"training.micro_batch=1: norm1 of model.name=mlp"),
        (["model.name=mlp", "training.batch_size=1", "model.batch_norm=false"], None),
        (["data.clients=1437", "data.minimum_samples=1", "training.batch_size=1"], None),  # LeNet-5 has pixels
        (["model.name=resnet20_snfl", "training.batch_size=1"], r"stage3.0.norm1 of model.name=resnet20_snfl cannot"),
    ],
)
def test_a_batch_of_one_is_refused_where_batch_normalisation_cannot_train_on_it(options, message) -> None:
    work = Workspace(compose(None, options))
    if message is None:
        work.check_batches()
        return
    with pytest.raises(ConfigError, match=message):
        work.check_batches()


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


def test_a_run_starts_from_the_weights_of_a_file(tmp_path) -> None:
    own = Workspace(compose(None, ["run.seed=3"]))
    trained = {name: array.contiguous() + 1 for name, array in own.initial_state.items()}
    save_file(trained, tmp_path / "final_ann.safetensors")
    work = Workspace(compose(None, ["run.seed=4", f"model.weights={tmp_path / 'final_ann.safetensors'}"]))
    assert work.initial_state.keys() == trained.keys()
    assert all(torch.equal(array, trained[name]) for name, array in work.initial_state.items())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda arrays, path: None, "No such file"),
        (lambda arrays, path: path.write_bytes(b"\x80\x04pickle"), "header"),
        (lambda arrays, path: save_file({**arrays, "fc9.bias": torch.ones(1)}, path), "'fc9.bias'.*unexpected"),
        (lambda arrays, path: save_file({**arrays, "fc5.bias": torch.ones(11)}, path), "'fc5.bias'.*shape"),
        (
            lambda arrays, path: save_file({k: v for k, v in arrays.items() if k != "fc5.bias"}, path),
            "'fc5.bias'.*miss",
        ),
        (lambda arrays, path: save_file({**arrays, "fc5.bias": torch.full((10,), torch.nan)}, path), "fc5.bias.*NaN"),
    ],
    ids=["missing", "pickle", "unexpected", "shape", "incomplete", "NaN"],
)
def test_weights_that_are_no_trained_network_are_refused_in_one_line(tmp_path, spoil, reason) -> None:
    path = tmp_path / "weights.safetensors"
    arrays = Workspace(compose(None, [])).initial_state
    spoil({name: array.contiguous() for name, array in arrays.items()}, path)
    with pytest.raises(ConfigError, match=rf"model\.weights={path}: .*{reason}") as caught:
        _ = Workspace(compose(None, [f"model.weights={path}"])).initial_state
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("about", [{"kind": "native"}, {"kind": "snn", "graph": {}}])
def test_the_weights_of_a_spiking_network_are_no_anns(tmp_path, about) -> None:
    """Those of a trained one fit by name and shape, and would train from weights that mean something else."""
    path, work = tmp_path / "final_snn.safetensors", Workspace(compose())
    arrays = {name: array.contiguous() for name, array in work.initial_state.items()}
    save_file(arrays, path, metadata={"snnfl": json.dumps(about)})
    with pytest.raises(
        ConfigError, match=r"final_snn\.safetensors: it holds a spiking network, and model\.neuron=relu "
    ):
        _ = Workspace(compose(None, [f"model.weights={path}"])).initial_state
    native = ["model.neuron=lif", "strategy.spiking=false", f"model.weights={path}"]
    assert Workspace(compose(None, native)).initial_state.keys() == work.initial_state.keys()
    with pytest.raises(ConfigError, match=r"it is a folder; take its final_snn\.safetensors$"):
        _ = Workspace(compose(None, [f"model.weights={tmp_path}"])).initial_state
    with pytest.raises(ConfigError, match=r"No such file.*; take .*/final_snn\.safetensors$"):
        _ = Workspace(compose(None, [f"model.weights={tmp_path}/final_ann.safetensors"])).initial_state


@pytest.mark.parametrize(
    ("device", "hint"),
    [
        ("gpu", "no device of torch's; did you mean 'cuda'?"),
        ("GPU:1", "no device of torch's; did you mean 'cuda:1'?"),
        ("CPU", "no device of torch's; did you mean 'cpu'?"),
        ("nonsense", "no device of torch's; known: cpu, cuda, mps, xpu"),
        ("cpu:x", "no device of torch's; did you mean 'cpu'?"),
    ],
)
def test_what_is_no_device_is_answered_with_the_nearest(device: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        _ = Workspace(compose(None, [f"run.device='{device}'"])).device
    assert str(error.value) == f"run.device={device}: {hint}"


@pytest.mark.parametrize("device", ["cuda:99", "mps"])
def test_a_device_that_is_not_there_is_an_error_of_one_line(device: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^run.device={device}: not available on this machine \(.{{1,80}}\); use cpu$"
    ):
        _ = Workspace(compose(None, [f"run.device='{device}'"])).device
    assert Workspace(compose()).device == torch.device("cpu")


def test_the_last_round_is_evaluated_on_everything() -> None:
    work = Workspace(compose(None, ["run.rounds=3", "evaluation.images=50"]))
    assert [work.test_images(server_round) for server_round in (1, 2, 3)] == [50, 50, 0]
    assert Workspace(compose(None, ["run.rounds=3"])).test_images(1) == 0


def test_batches_are_laid_out_as_the_weights_of_convolutions() -> None:
    assert Workspace(compose(None, ["model.name=lenet5"])).layout is torch.channels_last
    assert Workspace(compose(None, ["model.name=mlp"])).layout is torch.contiguous_format


@pytest.mark.usefixtures("own_registries")
def test_sequences_keep_their_layout_and_users_become_clients() -> None:
    digits = load(compose(None, []).data)
    images, users = digits.train_images[:, None].repeat(1, 3, 1, 1, 1), torch.arange(len(digits.train_labels)) % 4
    test = digits.test_images[:, None].repeat(1, 3, 1, 1, 1)
    filmed = replace(digits, train_images=images, test_images=test, sequence=True, users=users)
    register("filmed")(lambda root: filmed)

    @registry.register("frames")
    def frames(config: ModelConfig, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(1, 2), nn.Conv2d(3, classes, 8), nn.Flatten())

    work = Workspace(
        compose(None, ["data.source=filmed", "model.name=frames", "data.partition=natural", "data.clients=4"])
    )
    assert work.layout is torch.contiguous_format
    assert [users[part].unique().tolist() for part in work.partitions] == [[0], [1], [2], [3]]


class Standardised(nn.Conv2d):
    """Normalises its weight before the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


class Normalising(nn.Module):
    """Subtracts a mean of its own from the image."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(1, 1, 1, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean


class Scaled(nn.Linear):
    """Adds a linear layer of its own to itself."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.more = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * self.more(x)


@pytest.mark.parametrize(
    ("layer", "features", "words"),
    [
        (lambda: Standardised(1, 2, 3), 72, r"^parameter 0\.\S+ is in no layer .*or a weight is computed from it"),
        (Normalising, 64, r"^add is computed from constants .* does not exchange; put them into a layer"),
    ],
)
def test_what_an_s_run_would_not_exchange_is_refused_before_it(layer, features, words, monkeypatch) -> None:
    work = of_layers(lambda: [layer(), nn.ReLU(), nn.Flatten(), nn.Linear(features, 3)], monkeypatch)
    with pytest.raises(ConversionError, match=words):
        work.graph  # noqa: B018 (traced when it is asked for)


def test_an_adapter_of_layers_of_its_own_is_exchanged(monkeypatch) -> None:
    work = of_layers(lambda: [nn.Flatten(), Scaled(64, 4), nn.ReLU(), nn.Linear(4, 3)], monkeypatch)
    assert [node.name for node in work.graph.affines] == ["1", "1.more", "3"]


def of_layers(layers: Callable[[], list[nn.Module]], monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return the workspace of a model of one's own."""
    monkeypatch.setitem(registry.MODELS.items, "own", lambda config, shape, classes: nn.Sequential(*layers()))
    return Workspace(compose(None, ["model.name=own"]))
