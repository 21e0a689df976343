"""Every linear map that a network may hold: as the ANN computes it, step by step, in files, exports and energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import networks
import pytest
import stepwise
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from snnfl.conversion import ConversionConfig, convert, fold, recover
from snnfl.conversion.folding import NORM_FIELDS
from snnfl.metrics import count_spikes
from snnfl.spiking import ExportError, SpikingNetwork, load, save, to_nir, to_spikingjelly, trace

STEPS = 12


class Map(nn.Module):
    """A map without parameters, as a module."""

    def __init__(self, calls: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        return self.calls(x)


PICTURES: dict[str, Callable[[], nn.Module]] = {
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
    "transposed groups": lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(1, 2), groups=2, dilation=(2, 1), bias=False),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "nearest module": lambda: nn.UpsamplingNearest2d(size=(7, 5)),
    "bilinear": lambda: nn.UpsamplingBilinear2d(scale_factor=2),
    "bilinear uneven": lambda: Map(lambda x: F.interpolate(x, scale_factor=(1.5, 2.0), mode="bilinear")),
    "bicubic": lambda: Map(lambda x: F.interpolate(x, size=(9, 3), mode="bicubic", align_corners=True)),
    "exact": lambda: Map(lambda x: F.interpolate(x, size=5, mode="nearest-exact")),
    "area": lambda: Map(lambda x: F.interpolate(x, size=(4, 3), mode="area")),
    "zero padding": lambda: nn.ZeroPad2d((1, 2, 0, 3)),
    "constant padding": lambda: nn.ConstantPad2d(1, 0.75),
    "reflection": lambda: nn.ReflectionPad2d(2),
    "replication": lambda: nn.ReplicationPad2d((0, 1, 2, 0)),
    "circular": lambda: nn.CircularPad2d(1),
    "cropped": lambda: Map(lambda x: F.pad(x, (-1, 0, 0, -2))),
    "more channels": lambda: Map(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2), "constant", 0)),
    "permuted": lambda: Map(lambda x: x.permute(0, 2, 3, 1)),
    "transposed axes": lambda: Map(lambda x: torch.transpose(x, -1, -2)),
    "chunks": lambda: Map(lambda x: torch.cat(x.chunk(2, 1)[::-1], dim=1)),
    "split": lambda: Map(lambda x: x.split([1, 3], 1)[1] - x[:, :1]),
    "sliced": lambda: Map(lambda x: x[:, 1:3, ..., 2:-1]),
    "one channel": lambda: Map(lambda x: x[:, 2].unsqueeze(1)),
    "new axis": lambda: Map(lambda x: x[:, None].squeeze(1)),
    "unbound": lambda: Map(lambda x: torch.stack(x.unbind(1)[1:], 1)),
    "shuffled": lambda: nn.PixelShuffle(2),
    "unshuffled": lambda: nn.PixelUnshuffle(2),
    "channels shuffled": lambda: nn.ChannelShuffle(2),
    "flat space": lambda: nn.Flatten(2),
    "unflattened": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 6, 6))),
    "difference": lambda: Map(lambda x: x[:, 1:] - 0.5 * x[:, :1]),
    "numbers": lambda: Map(lambda x: 1 - (2 * x + 0.5) / 4),
    "synchronised": lambda: nn.SyncBatchNorm(4),
}


def network_of(make: Callable[[], nn.Module]) -> nn.Module:
    """Put a map between neurons and a readout, with random weights."""

    def build() -> nn.Module:
        layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), make()]
        with torch.no_grad():
            features = nn.Sequential(*layers).eval()(torch.zeros(1, 2, 6, 6)).numel()
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3))

    model = networks.trained(build)
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.running_var.fill_(0.5)
    return model


def converted(model: nn.Module, **options: object) -> SpikingNetwork:
    network = convert(model, networks.images(8), ConversionConfig(steps=STEPS, **options))
    # No neuron stands at its threshold exactly, where rounding would decide.
    return replace(
        network,
        parameters={
            name: array * 1.00123 if name.endswith("threshold") else array for name, array in network.parameters.items()
        },
    )


@pytest.mark.parametrize("kind", PICTURES)
def test_the_analog_twin_and_every_step(kind):
    model, images = network_of(PICTURES[kind]), networks.images(5, seed=3)
    network = converted(model, thresholds="channel_mmse")
    plain = convert(model, networks.images(8), ConversionConfig(steps=STEPS, calibration="none"))
    torch.testing.assert_close(plain.analog(images), model(images), rtol=1e-10, atol=1e-10)
    found = network.simulate(images, steps=STEPS, curve=(1, 5))
    literally = stepwise.logits(network, images, STEPS)
    for length in (1, 5, STEPS):
        torch.testing.assert_close(found[length], literally[length], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", PICTURES)
def test_the_mean_over_time_becomes_the_ann(kind):
    """The error of a rate code falls as one over the number of steps: nothing that is linear adds to it."""
    model, images = network_of(PICTURES[kind]), networks.images(5)
    options = {"thresholds": "layer_max", "calibration": "none", "initial_potential": "half"}
    network = convert(model, images, ConversionConfig(steps=1024, **options))
    logits = network.simulate(images, steps=1024, curve=(32,))
    errors = {length: (logits[length] - model(images)).abs().max().item() for length in (32, 1024)}
    assert errors[1024] < errors[32] / 8, errors


@pytest.mark.parametrize("kind", PICTURES)
def test_files_and_spikingjelly_have_it_and_nir_says_what_it_lacks(kind, tmp_path):
    network, images = converted(network_of(PICTURES[kind]), initial_potential="half"), networks.images(5, seed=3)
    expected = network.simulate(images, steps=STEPS)[STEPS]
    save(network, tmp_path / "network.safetensors")
    loaded = load(tmp_path / "network.safetensors")
    assert loaded.graph == network.graph
    assert torch.equal(loaded.simulate(images, steps=STEPS)[STEPS], expected)
    module = to_spikingjelly(network)
    with torch.no_grad():
        mean = torch.stack([module(images) for _ in range(STEPS)]).mean(0)
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)
    if kind in ("numbers", "synchronised"):
        to_nir(network, (2, 6, 6), tmp_path / "network.nir")
    else:
        with pytest.raises(ExportError, match=r"^\S+: .*NIR ") as error:
            to_nir(network, (2, 6, 6), tmp_path / "network.nir")
        assert "\n" not in str(error.value)


MAPS = [kind for kind in PICTURES if "transposed" not in kind or kind == "transposed axes"]


@pytest.mark.parametrize("kind", [kind for kind in MAPS if kind not in ("synchronised", "numbers", "constant padding")])
def test_spikes_take_every_path_through_a_map(kind):
    model, images = network_of(PICTURES[kind]), networks.images(3)
    network, head = converted(model), f"{len(model) - 1}"
    spikes = stepwise.outputs(network, images, STEPS, upto="1") != 0
    each = spikes.sum(0).double().flatten(1)
    probe = torch.rand(1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reached = torch.autograd.functional.jacobian(lambda x: model[2](x).flatten(), probe).flatten(1).abs() > 1e-12
    expected = 3 * (each @ reached.double().T).sum().item() / len(images)
    counts = {layer.layer: layer for layer in count_spikes(network, images, steps=STEPS).layers}
    assert counts[head].acs == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["transposed", "transposed groups"])
def test_a_transposed_convolution_costs_what_each_spike_reaches(kind):
    model, images = network_of(PICTURES[kind]), networks.images(3)
    network, layer = converted(model), model[2]
    spikes = (stepwise.outputs(network, images, STEPS, upto="1") != 0).sum(0).double()
    with torch.no_grad():
        ones = nn.utils.skip_init(
            nn.ConvTranspose2d, 4, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.output_padding, layer.groups, False, layer.dilation, dtype=torch.float64,
        )  # fmt: skip
        ones.weight.fill_(1)
        expected = ones(spikes).sum().item() / len(images)
    counts = {each.layer: each for each in count_spikes(network, images, steps=STEPS).layers}
    assert counts["2"].acs == pytest.approx(expected, rel=1e-12)
    assert counts["2"].ann_macs == layer.weight.numel() * 6 * 6  # each input meets each weight of its channel


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_folds_and_is_recovered(groups, bias):
    """Its weight has the inputs first: batch normalisation scales the outputs, each in its group."""
    layers = lambda: nn.Sequential(  # noqa: E731
        nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=bias), nn.BatchNorm2d(6), nn.ReLU()
    )
    model, images = networks.trained(layers), torch.randn(3, 4, 5, 5, dtype=torch.float64)
    graph, state = trace(model), model.state_dict()
    parameters = fold(graph, state)
    assert parameters["0.weight"].shape == (6, 4 // groups, 3, 3)
    torch.testing.assert_close(SpikingNetwork(graph, parameters).analog(images), model(images), rtol=1e-10, atol=1e-10)
    if groups == 1:
        fused = fuse_conv_bn_eval(model[0], model[1], transpose=True)
        torch.testing.assert_close(graph.affines[0].as_in_ann(parameters["0.weight"]), fused.weight)
        torch.testing.assert_close(parameters["0.bias"], fused.bias)
    update = parameters | {f"1.{field}": state[f"1.{name}"] for field, name in NORM_FIELDS.items()}
    recovered = recover(graph, update, biases=bias)
    wanted = {name for name in state if not name.endswith("num_batches_tracked")}
    assert recovered.keys() == wanted
    for name in wanted:
        torch.testing.assert_close(recovered[name], state[name], rtol=1e-9, atol=1e-12)
    state["1.weight"][2] = 0  # a dead channel takes the fallback, laid out as the ANN's weight
    dead = fold(graph, state) | {f"1.{field}": state[f"1.{name}"] for field, name in NORM_FIELDS.items()}
    filled = recover(graph, dead, biases=False, fallback={"0.weight": state["0.weight"]})
    torch.testing.assert_close(filled["0.weight"], state["0.weight"], rtol=1e-9, atol=1e-12)


SERIES: dict[str, Callable[[], nn.Module]] = {
    "transposed": lambda: nn.ConvTranspose1d(4, 2, 3, stride=2, output_padding=1, groups=2),
    "linear": lambda: nn.Upsample(scale_factor=2, mode="linear", align_corners=True),
    "padding": lambda: nn.ConstantPad1d((1, 2), -0.5),
    "reflection": lambda: nn.ReflectionPad1d(1),
    "turned": lambda: Map(lambda x: x.transpose(1, 2)),
    "sliced": lambda: Map(lambda x: x[..., 1::2]),
}


@pytest.mark.parametrize("kind", SERIES)
def test_maps_of_series(kind):
    def build() -> nn.Module:
        layers = [nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), SERIES[kind](), nn.ReLU()]
        with torch.no_grad():
            features = nn.Sequential(*layers)(torch.zeros(1, 2, 9)).numel()
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3))

    model = networks.trained(build)
    images = torch.randn(6, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = convert(model, images, ConversionConfig(steps=STEPS, thresholds="channel_mmse"))
    moved = {name: a * 1.00123 if "threshold" in name else a for name, a in network.parameters.items()}
    network = replace(network, parameters=moved)
    found, literally = network.simulate(images, steps=STEPS)[STEPS], stepwise.logits(network, images, STEPS)[STEPS]
    torch.testing.assert_close(found, literally, rtol=1e-9, atol=1e-9)
    plain = convert(model, images, ConversionConfig(steps=STEPS, calibration="none"))
    torch.testing.assert_close(plain.analog(images), model(images), rtol=1e-10, atol=1e-10)
