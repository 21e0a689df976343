"""Spiking models against snnTorch's neurons, step after step, in the same network; and what they are as modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from snnfl.config import ConfigError, ModelConfig
from snnfl.models import SpikingModel, build_model, drawing, names
from snnfl.models.over_time import OverTime
from snnfl.models.spiking import spiking_model
from snnfl.rng import generator
from snnfl.torchvision_guard import guard
from snnfl.training import cross_entropy

guard()

import snntorch  # noqa: E402  (torchvision must be guarded first)
from snntorch import surrogate as snntorch_surrogate  # noqa: E402

SHAPES = {
    "mlp": (1, 8, 8),
    "fcnet": (5,),
    "lenet5": (1, 12, 12),
    "convnet": (2, 8, 8),
    "cnn": (1, 8, 8),
    "conv_mlp": (1, 8, 8),
}
STEPS = 4


def shape_of(name: str) -> tuple[int, ...]:
    return SHAPES.get(name, (3, 32, 32))


def build(name: str, *, sequence: bool = False, shape: tuple[int, ...] | None = None, **options: object) -> nn.Module:
    config = ModelConfig(**{"name": name, "neuron": "lif", "time_steps": None if sequence else STEPS, **options})
    shape = shape_of(name) if shape is None else shape
    return build_model(config, input_shape=shape, classes=5, generator=generator(3, "weights"), sequence=sequence)


def samples(name: str, count: int = 3) -> Tensor:
    return 2 * torch.randn(count, *shape_of(name), generator=generator(1, "samples"), dtype=torch.float64)


def in_snntorch(model: nn.Module, *, reset: str = "subtract") -> nn.Module:
    """An ordinary network's ReLUs as snnTorch's neurons."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, Leaky(reset))
    return model


class Leaky(nn.Module):
    """snnTorch's neurons, whose spikes are float32 whatever their currents are."""

    def __init__(self, reset: str) -> None:
        super().__init__()
        fast_sigmoid = snntorch_surrogate.fast_sigmoid(slope=25)
        self.neurons = snntorch.Leaky(
            beta=0.95, spike_grad=fast_sigmoid, init_hidden=True, reset_mechanism=reset
        ).double()

    def forward(self, current: Tensor) -> Tensor:
        return self.neurons(current).double()


def over_time(body: nn.Module, inputs: Tensor, output: nn.Module) -> tuple[Tensor, Tensor]:
    """Spikes and potentials of the output neurons, step after step."""
    spikes, potentials = [], []
    for _ in range(STEPS):
        spikes.append(output(body(inputs)))
        potentials.append(output.neurons.mem)
    return torch.stack(spikes), torch.stack(potentials)


@pytest.mark.parametrize("name", names())
def test_every_network_is_snntorchs_step_after_step(name):
    """In evaluation mode, as batch normalisation over time and batch isn't that of each step."""
    model = build(name, readout="final_potential").double().eval()
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.mul_(3)  # or deep layers never fire
    plain = build(name, neuron="relu", time_steps=None, readout=None).double().eval()
    plain.load_state_dict(model.state_dict())
    inputs = samples(name)
    _, potentials = over_time(in_snntorch(plain), inputs, Leaky("none"))
    torch.testing.assert_close(model(inputs), potentials[-1], rtol=1e-9, atol=1e-9)
    assert potentials[-1].std() > 0


@pytest.mark.parametrize("fires", [None, True])
@pytest.mark.parametrize("readout", ["rate", "final_potential", "mean_potential", "max_potential"])
def test_every_readout_and_its_gradients_are_those_of_snntorchs_recordings(readout, fires):
    model = build("lenet5", readout=readout, output_fires=fires, batch_norm=False).double()
    plain = build("lenet5", neuron="relu", time_steps=None, batch_norm=False).double()
    inputs, labels = samples("lenet5"), torch.tensor([0, 3, 4])
    for network in (model, plain):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(3 if parameter.dim() > 1 else 1)
    output = Leaky("subtract" if readout == "rate" or fires else "none")
    spikes, potentials = over_time(in_snntorch(plain), inputs, output)
    expected = {
        "rate": spikes.mean(0),
        "final_potential": potentials[-1],
        "mean_potential": potentials.mean(0),
        "max_potential": potentials.amax(0),
    }[readout]
    found = model(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = (
        torch.autograd.grad(nn.functional.cross_entropy(logits, labels), tuple(network.parameters()))
        for logits, network in ((found, model), (expected, plain))
    )
    assert any(gradient.any() for gradient in ours)
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)  # their spikes are float32


def test_per_step_loss_is_the_mean_of_each_steps_cross_entropy():
    model = build("mlp").double()
    inputs, labels = samples("mlp"), torch.tensor([0, 3, 4])
    model.per_step = True
    losses = [nn.functional.cross_entropy(values, labels) for values in model.over_time(inputs)]
    assert len(losses) == STEPS
    torch.testing.assert_close(cross_entropy(model, inputs, labels), torch.stack(losses).mean())
    torch.testing.assert_close(model.over_time(inputs).mean(0), model(inputs))


@pytest.mark.parametrize("name", names())
def test_weights_and_their_names_are_the_ordinary_networks(name):
    ordinary, spiking = build(name, neuron="relu", time_steps=None).state_dict(), build(name).state_dict()
    assert list(ordinary) == list(spiking)
    assert all(torch.equal(ordinary[key], spiking[key]) for key in ordinary)


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mlp"])
def test_a_constant_sequence_is_the_sample(name):
    model = build(name).double()
    inputs = samples(name)
    torch.testing.assert_close(model(inputs.expand(STEPS, *inputs.shape)), model(inputs))


def test_samples_that_are_sequences():
    model = build("convnet", sequence=True, shape=(6, 2, 8, 8)).double()
    inputs = torch.randn(3, 6, 2, 8, 8, dtype=torch.float64)
    assert model.steps == 6
    assert model(inputs).shape == (3, 5)
    torch.testing.assert_close(model.currents(inputs), model.body(inputs.movedim(1, 0)))
    assert model(inputs[:, :4]).shape == (3, 5)  # of another length: the first axis is still the batch
    shuffled = inputs[:, torch.tensor([1, 0, 2, 3, 5, 4])]
    assert not torch.equal(model.over_time(inputs), model.over_time(shuffled))


@pytest.mark.parametrize(
    ("sequence", "shape", "given"), [(False, (1, 12, 12), (12, 12)), (True, (6, 1, 12, 12), (3, 1, 12, 12))]
)
def test_inputs_without_an_axis_are_refused(sequence, shape, given):
    model = build("lenet5", sequence=sequence, shape=shape)
    with pytest.raises(ValueError, match=rf"expected \[N, {', '.join(map(str, shape))}\]"):
        model(torch.zeros(given))


def test_a_call_leaves_nothing_behind():
    model = build("lenet5", batch_norm=False)
    inputs = samples("lenet5").float()
    first = model(inputs)
    assert torch.equal(first, model(inputs))
    assert {name for name, _ in model.named_buffers()} == {f"relu{i}.threshold" for i in range(1, 5)} | {
        "readout.neurons.threshold"
    }


def test_a_copy_is_another_model():
    model = build("mlp")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    inputs = samples("mlp").float()
    assert model(inputs).any()
    assert not other(inputs).any()


def test_a_model_can_be_pickled():
    model = build("lenet5", learn_beta=True)
    other = pickle.loads(pickle.dumps(model))
    inputs = samples("lenet5").float()
    assert torch.equal(model(inputs), other(inputs))
    assert repr(model) == repr(other)


def test_under_torch_func():
    """Per-sample gradients by vmap are those of each sample alone."""
    model = build("lenet5", batch_norm=False, learn_beta=True, learn_threshold=True).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    inputs, parameters = samples("lenet5"), dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (sample.unsqueeze(0),)).square().sum()

    together = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, inputs)
    assert {"relu1.beta", "relu4.threshold"} <= set(together)
    for index in range(len(inputs)):
        model.zero_grad()
        loss(parameters, inputs[index]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(together[name][index], parameter.grad)
    assert together["relu1.beta"].any()


def test_pooling_at_once_is_pooling_afterwards():
    model, again = (build("convnet", batch_norm=False).double() for _ in range(2))
    assert [model.relu1.pool, model.relu2.pool] == [2, 2]
    assert isinstance(model.pool1, nn.Identity)
    again.relu1.pool = again.relu2.pool = 1
    for name in ("pool1", "pool2"):
        pool = nn.AvgPool2d(2)
        again.body.add_module(name, pool)
        pool.__class__ = type("AvgPool2d", (OverTime, nn.AvgPool2d), {})
    inputs = samples("convnet")
    torch.testing.assert_close(model(inputs), again(inputs))
    ours, theirs = (
        torch.autograd.grad(network(inputs).square().sum(), tuple(network.parameters())) for network in (model, again)
    )
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second)
    pooled_by_maximum = build("convnet", pooling="max")
    assert isinstance(pooled_by_maximum.pool1, nn.MaxPool2d)
    assert pooled_by_maximum(samples("convnet").float()).shape == (3, 5)


def test_recordings_are_what_the_layers_did():
    model = build("lenet5", batch_norm=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    inputs = samples("lenet5").float()
    found = model.record(inputs)
    assert list(found) == ["relu1", "relu2", "relu3", "relu4"]
    assert found["relu1"].spikes.shape == (STEPS, 3, 6, 12, 12)
    assert found["relu1"].spikes.any()
    assert torch.equal(found["relu1"].spikes, (found["relu1"].potentials > 1).float())
    currents = model.fc5(found["relu4"].spikes)
    assert torch.equal(model.readout(currents), model(inputs))


def test_neurons_in_the_head_alone():
    model = build("convnet", neurons="head", batch_norm=False)
    assert list(model.neurons) == ["relu3"]
    assert isinstance(model.relu1, nn.ReLU)
    seen = []
    model.conv2.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    model(samples("convnet").float())
    assert seen == [1], "convolutions of a constant value are computed once, not at each step"
    with pytest.raises(ConfigError, match=r"no nn\.ReLU behind a linear layer"):
        build("resnet20", neurons="head")


def test_poisson_draws_from_what_it_is_given():
    model = build("mlp", encoding="poisson")
    inputs = samples("mlp").float()
    assert torch.equal(model(inputs), model(inputs))
    with drawing(model, generator(5, "encoding")):
        first, second = model.encode(inputs), model.encode(inputs)
    with drawing(model, generator(5, "encoding")):
        assert torch.equal(model.encode(inputs), first)
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) <= {-1, 0, 1}
    many = torch.full((1, 1, 8, 8), -0.25).expand(400, -1, -1, -1)
    assert model.encode(many).mean().item() == pytest.approx(-0.25, abs=0.01)


def test_encodings_that_do_not_fit_the_data():
    with pytest.raises(ConfigError, match=r"model\.encoding=delta: it encodes sequences"):
        build("mlp", encoding="delta")
    with pytest.raises(ConfigError, match=r"model\.encoding=latency: it encodes samples"):
        build("mlp", encoding="latency", sequence=True, shape=(6, 8))
    with pytest.raises(ConfigError, match="did you mean 'poisson'"):
        build("mlp", encoding="poison")
    with pytest.raises(ValueError, match=r"^latency: expected samples without time, found 4 steps"):
        build("mlp", encoding="latency")(torch.zeros(STEPS, 2, 1, 8, 8))


def test_recurrent_neurons_are_those_of_linear_layers():
    model = build("lenet5", neuron="rlif", batch_norm=False)
    weights = [name for name, _ in model.named_parameters() if "recurrent" in name]
    assert weights == ["relu3.recurrent.weight", "relu4.recurrent.weight"]
    again = build("lenet5", neuron="rlif", batch_norm=False)
    assert torch.equal(model.relu3.recurrent.weight, again.relu3.recurrent.weight)


def test_normalisation_to_the_threshold_starts_at_it():
    model = build("resnet20", threshold_norm=True, threshold=0.5)
    block = next(module for module in model.modules() if hasattr(module, "norms_added"))
    assert block.norm1.weight.unique().tolist() == [0.5]
    assert block.norm2.weight.unique().tolist() == [pytest.approx(0.5 / 2**0.5)]
    with pytest.raises(ConfigError, match=r"model\.threshold_norm=True: .*has no batch normalisation"):
        build("mlp", threshold_norm=True, batch_norm=False)


def of_layers(model: nn.Module, **options: object) -> SpikingModel:
    """A user's own network of four features as a spiking one."""
    config, draw = ModelConfig(**{"name": "own", "neuron": "lif", **options}), generator(0, "recurrent")
    return spiking_model(model, config, input_shape=(4,), sequence=False, generator=draw)


class Own(nn.Module):
    def __init__(self, **arrays: nn.Parameter | Tensor) -> None:
        super().__init__()
        self.hidden, self.relu, self.out = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)
        for name, array in arrays.items():
            register = self.register_parameter if isinstance(array, nn.Parameter) else self.register_buffer
            register(name, array)
        self.modes: list[bool] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.out(self.relu(self.hidden(inputs)))


def test_a_network_without_relus():
    with pytest.raises(ConfigError, match=r"has no nn\.ReLU that neurons could replace"):
        of_layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_a_relu_of_several_names_becomes_neurons_under_each():
    relu = nn.ReLU()
    model = of_layers(nn.Sequential(nn.Linear(4, 6), relu, nn.Linear(6, 6), relu, nn.Linear(6, 3)))
    assert model.neurons.keys() == {"1", "3"}
    assert model.neurons["1"] is not model.neurons["3"]


def test_the_head_is_what_follows_linear_layers_however_layers_are_nested():
    hidden = nn.Sequential(nn.Linear(4, 6))
    assert of_layers(nn.Sequential(hidden, nn.ReLU(), nn.Linear(6, 3)), neurons="head").neurons.keys() == {"1"}


@pytest.mark.parametrize("array", [nn.Parameter(torch.ones(())), torch.ones(())], ids=["parameter", "buffer"])
def test_what_a_network_holds_beside_its_layers_is_refused(array):
    with pytest.raises(ConfigError, match=r"^model\.name=own: gain is in no layer"):
        of_layers(Own(gain=array))


@pytest.mark.parametrize("name", ["readout", "layers", "body", "steps"])
def test_a_layer_that_is_called_as_what_a_spiking_network_has_is_refused(name):
    body = Own()
    body.add_module(name, nn.Linear(3, 3))
    with pytest.raises(ConfigError, match=rf"^model\.name=own: a spiking network has its own {name}; call that layer"):
        of_layers(body)


def test_a_networks_own_forward_knows_the_mode():
    body = Own()
    model = of_layers(body)
    for mode in (True, False, True):
        model.train(mode)(torch.zeros(1, 4))
    assert body.modes == [True, False, True]


def test_options_without_effect_are_refused():
    layers = nn.Conv1d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    with pytest.raises(ConfigError, match=r"^model\.neuron=rlif: model\.name=own has none behind a linear layer"):
        of_layers(nn.Sequential(*layers), neuron="rlif")
    with pytest.raises(ConfigError, match=r"^model\.threshold_norm=True: model\.name=own has no batch normalisation"):
        of_layers(Own(), threshold_norm=True)


def test_only_a_mean_is_pooled_at_once():
    def pooled(pool: nn.Module) -> int:
        layers = nn.Unflatten(1, (1, 2, 2)), nn.ReLU(), pool, nn.Flatten(), nn.Linear(1, 3)
        return of_layers(nn.Sequential(*layers)).neurons["1"].pool

    assert pooled(nn.AvgPool2d(2)) == 2
    assert pooled(nn.AvgPool2d(2, divisor_override=1)) == 1


def test_it_is_a_spiking_model():
    assert isinstance(build("vgg16"), SpikingModel)
    assert "lif, beta=0.95, steps=4" in repr(build("mlp"))
