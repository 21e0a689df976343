"""A published network against a literal one, written from the paper's equations, in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import mutate, read_if_whole
from references.private_snn import poisson_step, spiking_logits
from safetensors.torch import load_file, save_file
from torch import Tensor

from snnfl.conversion import fold, trace
from snnfl.models import initialise
from snnfl.private_snn import PublishedNetwork, load, run, save
from snnfl.rng import generator
from snnfl.spiking import NetworkFileError, SpikingNetwork

STEPS = 13
LEAKS = (0.9, 1.0)


def ann() -> networks.Plain:
    model = networks.Plain().double()
    initialise(model, generator(3, "weights"))
    return model


def published(encoding: str = "poisson", *, leaks: tuple[float, ...] = LEAKS, scale: float = 1.0) -> PublishedNetwork:
    model = ann()
    graph = trace(model)
    parameters = {name: array.detach() for name, array in fold(graph, model.state_dict()).items()}
    for node, leak, threshold in zip(graph.spikes, leaks, (0.4, 0.3), strict=True):
        parameters[f"{node.name}.threshold"] = torch.tensor([threshold], dtype=torch.float64)
        parameters[f"{node.name}.leak"] = torch.tensor([leak], dtype=torch.float64)
    return PublishedNetwork(
        graph=graph, parameters=parameters, steps=STEPS, input_shape=(2, 6, 6), encoding=encoding, input_scale=scale
    )


def images(count: int = 4) -> Tensor:
    return torch.rand((count, 2, 6, 6), generator=generator(1, "images"), dtype=torch.float64) * 2 - 1


def literal(network: PublishedNetwork, parameters: dict[str, Tensor], pictures: Tensor, steps: int) -> Tensor:
    draws = generator(2, "spikes")
    scaled = pictures / network.input_scale
    inputs = [poisson_step(scaled, draws) * network.input_scale for _ in range(steps)]
    if network.encoding == "direct":
        inputs = [pictures] * steps
    names = [node.name for node in network.graph.spikes]
    leaks = [float(parameters[f"{name}.leak"]) for name in names]
    return spiking_logits(
        parameters, inputs, leaks=leaks, thresholds=[parameters[f"{name}.threshold"] for name in names]
    )


@pytest.mark.parametrize(("encoding", "scale"), [("poisson", 1.0), ("poisson", 1.7), ("direct", 1.0)])
def test_logits_and_gradients_equal_a_literal_network(encoding: str, scale: float) -> None:
    network = published(encoding, scale=scale)
    trained = [name for name in network.parameters if name.endswith(("weight", "bias"))]
    mine = {name: array.clone().requires_grad_(name in trained) for name, array in network.parameters.items()}
    theirs = {name: array.clone().requires_grad_(name in trained) for name, array in network.parameters.items()}
    ((_, found),) = run(network.holding(mine), images(), generator(2, "spikes"), lengths=[STEPS])
    expected = literal(network, theirs, images(), STEPS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weight = torch.rand(found.shape, generator=generator(4, "weight"), dtype=torch.float64)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for name in trained:
        assert theirs[name].grad is not None
        assert theirs[name].grad.abs().sum() > 0
        torch.testing.assert_close(mine[name].grad, theirs[name].grad, rtol=1e-9, atol=1e-9)


def test_neither_logits_nor_gradients_depend_on_the_chunks() -> None:
    network, results = published(), []
    for chunk in (1, 4, STEPS):
        parameters = {name: array.clone().requires_grad_() for name, array in network.parameters.items()}
        draws = generator(2, "spikes")
        ((_, logits),) = run(network.holding(parameters), images(), draws, lengths=[STEPS], chunk=chunk)
        logits.square().sum().backward()
        results.append((logits, parameters["conv.weight"].grad, draws.get_state()))
    for logits, gradient, state in results[1:]:
        torch.testing.assert_close(logits, results[0][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-10, atol=1e-12)
        assert torch.equal(state, results[0][2])


def test_a_curve_is_one_simulation() -> None:
    network = published()
    curve = network.simulate(images(), generator(2, "spikes"), curve=(3, STEPS, 20))
    assert sorted(curve) == [3, STEPS, 20]
    for length, logits in curve.items():
        torch.testing.assert_close(logits, literal(network, dict(network.parameters), images(), length))
    torch.testing.assert_close(network(images(), generator(2, "spikes")), curve[STEPS], rtol=1e-12, atol=1e-12)


def test_without_leak_and_with_direct_input_it_is_the_converted_network() -> None:
    network = published("direct", leaks=(1.0, 1.0))
    plain = {name: array for name, array in network.parameters.items() if not name.endswith("leak")}
    for kind, potential in (("zero", None), ("half", 0.5)):
        parameters = dict(network.parameters)
        if potential is not None:
            for node in network.graph.spikes:
                parameters[f"{node.name}.potential"] = parameters[f"{node.name}.threshold"] * potential
        expected = SpikingNetwork(network.graph, plain, kind)(images(), steps=STEPS)
        torch.testing.assert_close(network.holding(parameters)(images()), expected)


def test_thresholds_per_channel_are_those_of_a_layer_where_they_agree() -> None:
    network = published()
    expected = network(images(), generator(2, "spikes"))
    several = dict(network.parameters)
    for node, channels in zip(network.graph.spikes, (4, 8), strict=True):
        for kind in ("threshold", "leak"):
            several[f"{node.name}.{kind}"] = several[f"{node.name}.{kind}"].repeat(channels)
    torch.testing.assert_close(network.holding(several)(images(), generator(2, "spikes")), expected)
    several["relu.threshold"] = several["relu.threshold"] * torch.tensor([1.0, 2, 1, 1], dtype=torch.float64)
    assert not torch.allclose(network.holding(several)(images(), generator(2, "spikes")), expected)


def test_gradients_reach_images_of_direct_coding() -> None:
    pictures = images().requires_grad_()
    ((_, logits),) = run(published("direct"), pictures, None, lengths=[STEPS])
    logits.sum().backward()
    assert pictures.grad is not None
    assert pictures.grad.abs().sum() > 0


def test_analog_is_the_ann() -> None:
    model = ann()
    torch.testing.assert_close(published().analog(images()), model(images()))


def test_a_missing_generator_is_told_of() -> None:
    with pytest.raises(ValueError, match=r"encoding=poisson draws spikes: give a torch\.Generator"):
        published()(images())


def test_images_of_another_size_are_told_of() -> None:
    with pytest.raises(ValueError, match="do not fit the model"):
        published()(images()[:, :, :4, :4], generator(0, "spikes"))


def pooled(model: type[networks.Gated] | type[networks.MaxPooled], **options: Any) -> PublishedNetwork:
    """Publish a network with maxima, in front of neurons and behind them."""
    module = networks.trained(model)
    graph = trace(module)
    parameters = dict(fold(graph, module.state_dict()))
    for node in graph.spikes:
        parameters |= {
            f"{node.name}.threshold": torch.full((1,), 0.6).double(),
            f"{node.name}.leak": torch.ones(1).double(),
        }
    return PublishedNetwork(graph=graph, parameters=parameters, steps=STEPS, input_shape=(2, 6, 6), **options)


@pytest.mark.parametrize("model", [networks.Gated, networks.MaxPooled])
def test_maxima_are_those_of_the_converted_network(model: type[networks.Gated]) -> None:
    network = pooled(model, encoding="direct")
    plain = {name: array for name, array in network.parameters.items() if not name.endswith("leak")}
    expected = SpikingNetwork(network.graph, plain, "zero")(images(), steps=STEPS)
    torch.testing.assert_close(network(images()), expected)


def test_maxima_go_on_from_chunk_to_chunk_with_their_gradients() -> None:
    network, results = pooled(networks.Gated), []
    for chunk in (1, 4, STEPS):
        parameters = {name: array.clone().requires_grad_() for name, array in network.parameters.items()}
        ((_, logits),) = run(
            network.holding(parameters), images(), generator(2, "spikes"), lengths=[STEPS], chunk=chunk
        )
        logits.square().sum().backward()
        results.append((logits, parameters["left.weight"].grad, parameters["mix.weight"].grad))
    assert all(gradient.abs().sum() > 0 for gradient in results[0][1:])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-12)


def test_a_file_holds_the_network(tmp_path) -> None:
    network = published(scale=1.5)
    save(network, tmp_path / "published.safetensors")
    again = load(tmp_path / "published.safetensors")
    assert again.graph == network.graph
    assert (again.steps, again.input_shape, again.encoding, again.input_scale) == (STEPS, (2, 6, 6), "poisson", 1.5)
    assert torch.equal(again(images(), generator(2, "spikes")), network(images(), generator(2, "spikes")))
    save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "published.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, about: arrays.pop("relu.leak"), "lacks array 'relu.leak'"),
        (lambda arrays, about: arrays.pop("conv.weight"), "lacks array 'conv.weight'"),
        (lambda arrays, about: arrays.update(more=torch.ones(1, dtype=torch.float64)), "has surplus array 'more'"),
        (lambda arrays, about: arrays["relu.leak"].fill_(1.5), "leak that is no list of numbers from 0 to 1"),
        (lambda arrays, about: arrays["relu.leak"].fill_(torch.nan), "holds NaN"),
        (lambda arrays, about: arrays["relu.threshold"].fill_(0), "threshold that is not positive"),
        (lambda arrays, about: about.update(steps=0), "steps=0 is not valid"),
        (lambda arrays, about: about.update(steps=True), "steps=True is not valid"),
        (lambda arrays, about: about.update(encoding="exec"), "encoding='exec' is not valid"),
        (lambda arrays, about: about.update(input_scale=0), "input_scale=0 is not valid"),
        (lambda arrays, about: about.update(input_shape=[2, 5, 5]), "do not fit the model"),
        (lambda arrays, about: about.update(input_shape=[]), "input_shape=.* is not valid"),
        (lambda arrays, about: about.update(input_shape=[2, 10**6, 10**6]), "do not fit the model"),
        (lambda arrays, about: about.update(input_shape=[2, 10**18, 10**18]), "input_shape=.* is not valid"),
        (lambda arrays, about: about.update(schema=9), "reads schema 1"),
        (lambda arrays, about: about.update(kind="snn"), "holds no published network"),
        (lambda arrays, about: about["graph"]["nodes"].pop(), "has surplus array .head"),
    ],
)
def test_a_file_that_somebody_changed_is_refused(tmp_path, change, message: str) -> None:
    path = tmp_path / "published.safetensors"
    save(published(), path)
    arrays, about = load_file(path), json.loads(metadata_of(path))
    change(arrays, about)
    save_file(arrays, path, {"snnfl": json.dumps(about)})
    with pytest.raises(NetworkFileError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


def test_neurons_are_not_named_as_what_a_maximum_remembers(tmp_path) -> None:
    path = tmp_path / "published.safetensors"
    save(published(), path)
    arrays, about = load_file(path), json.loads(metadata_of(path).replace('"relu"', '"pool/total"'))
    arrays = {name.replace("relu.", "pool/total."): array for name, array in arrays.items()}
    save_file(arrays, path, {"snnfl": json.dumps(about)})
    with pytest.raises(NetworkFileError, match="'pool/total' is not a name of neurons"):
        load(path)


def test_shapes_are_followed_without_the_memory_of_their_values(tmp_path) -> None:
    path = tmp_path / "published.safetensors"
    network = pooled(networks.Gated)  # which takes images of any size
    save(replace(network, input_shape=(2, 2_000_000, 2_000_000)), path)  # 64 terabytes, and more behind a convolution
    assert load(path).input_shape == (2, 2_000_000, 2_000_000)


@pytest.fixture(scope="module")
def described(tmp_path_factory) -> tuple[Path, dict[str, Tensor], str]:
    """A file, its arrays and what it says about itself."""
    path = tmp_path_factory.mktemp("published") / "published.safetensors"
    save(pooled(networks.Gated), path)
    return path, load_file(path), metadata_of(path)


@given(data=st.data())
def test_a_mutated_description_is_read_or_refused(described, data: st.DataObject) -> None:
    path, arrays, text = described
    about = json.loads(text)
    mutate(data.draw(st.sampled_from([about, about["input_shape"]])), data)  # whose numbers are few among all places
    save_file(arrays, path, {"snnfl": json.dumps(about)})
    if (network := read_if_whole(load, path)) is not None:
        assert all(type(size) is int and size > 0 for size in (*network.input_shape, network.steps))


def test_another_file_is_refused(tmp_path) -> None:
    with pytest.raises(NetworkFileError, match="No such file"):
        load(tmp_path / "nothing")
    (tmp_path / "text").write_text("not a network")
    with pytest.raises(NetworkFileError, match="no file of safetensors"):
        load(tmp_path / "text")


def metadata_of(path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()["snnfl"]
