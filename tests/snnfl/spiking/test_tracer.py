"""What a forward computes is what is recorded: of shapes, of parameters, in modules that subclass a known one."""

from __future__ import annotations

import copy
import linecache
import re
from collections.abc import Callable

import networks
import pytest
import torch
import torch.ao.nn.qat as qat
import torch.nn.functional as F
from networks import Calls
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver, QConfig, default_fake_quant
from torch.nn.utils import parametrizations, parametrize, prune

from snnfl.conversion import ConversionConfig, convert, fold
from snnfl.spiking import ConversionError, SpikingGraph, SpikingNetwork, trace, trace_with_state


def assert_twin(model: nn.Module, images: Tensor, input_shape: tuple[int, ...] | None = None) -> SpikingGraph:
    """Trace; the analog twin computes what the model computes, whose arrays stay as they were."""
    before = copy.deepcopy(model.state_dict())
    graph, state = trace_with_state(model, input_shape=input_shape)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items())
    with torch.no_grad():
        expected = model.eval()(images.clone())
        found = SpikingNetwork(graph, fold(graph, state)).analog(images)
    tolerance = 1e-9 if images.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    return graph


def trained(layers: Callable[[], nn.Module]) -> tuple[nn.Module, torch.dtype]:
    """Build a network; PyTorch fake-quantises single precision alone."""
    dtype = torch.float32 if any(isinstance(module, FakeQuantize) for module in layers().modules()) else torch.float64
    return networks.trained(layers, dtype=dtype), dtype


# Subclasses of a known module, and weights that are computed.


def two_bits() -> QConfig:
    weight = FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-2,
        quant_max=1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    return QConfig(activation=default_fake_quant, weight=weight)


class LowRank(nn.Linear):
    """Adds a product of two narrow matrices to a frozen weight (LoRA)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x)) * 0.5


class Merged(nn.Linear):
    """The same, added to the weight before it is used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.empty(2, inputs)), nn.Parameter(torch.empty(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.up @ self.down, self.bias)


class Standardised(nn.Conv2d):
    """Normalises each output's weight before the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / deviation, self.bias)


class Masked(nn.Conv2d):
    """Overrides what a convolution's forward calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight.tril(), bias)


class Positive(nn.Linear):
    """Has a property in place of its weight."""

    @property
    def weight(self) -> Tensor:
        return self._parameters["weight"].abs()


def positive(layer: nn.Linear) -> nn.Linear:
    layer.__class__ = Positive
    return layer


class Shifted(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.5) * 2 + 0.25


class Frozen(nn.BatchNorm2d):
    """Normalises by a formula of its own."""

    def forward(self, x: Tensor) -> Tensor:
        factor = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * factor
        return x * factor.view(1, -1, 1, 1) + shift.view(-1, 1, 1)


class Activated(nn.BatchNorm2d):
    """Normalises, then spikes: as timm's BatchNormAct2d."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected four dimensions, found {x.ndim}")
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return self.act(x)


class Average(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride)


class Absolute(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs()


def quantised(kind: type[nn.Module], *sizes: int) -> nn.Module:
    layer = kind(*sizes, qconfig=two_bits())
    return layer


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


def patched(layer: nn.Module) -> nn.Module:
    """Replace the forward of one module, not of its type."""
    plain = layer.forward
    layer.forward = lambda x: plain(x) * 2
    return layer


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "qat": lambda: quantised(qat.Conv2d, 2, 3, 3),
    "standardised": lambda: Standardised(2, 3, 3),
    "masked": lambda: Masked(2, 3, 3),
    "patched": lambda: patched(nn.Conv2d(2, 3, 3)),
    "parametrized": lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 3)),
    "spectral": lambda: parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)),
    "old spectral": lambda: nn.utils.spectral_norm(nn.Conv2d(2, 3, 3)),
    "old weight": lambda: old_weight_norm(nn.Conv2d(2, 3, 3)),
    "pruned": lambda: prune.l1_unstructured(nn.Conv2d(2, 3, 3), "weight", 0.5),
    "transposed": lambda: parametrizations.weight_norm(nn.ConvTranspose2d(2, 3, 3, stride=2)),
    "frozen": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), Frozen(3)),
    "activated": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), Activated(3)),
    "shifted": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), Shifted()),
    "average": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), Average(2)),
}

LINEAR: dict[str, Callable[[], nn.Module]] = {
    "qat": lambda: quantised(qat.Linear, 4, 3),
    "low rank": lambda: LowRank(4, 3),
    "merged": lambda: Merged(4, 3),
    "positive": lambda: positive(nn.Linear(4, 3)),
    "parametrized": lambda: (
        parametrize.register_parametrization(nn.Linear(4, 3), "weight", Absolute()) or nn.Identity()
    ),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 3)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_convolution_converts_as_what_it_computes(kind):
    model, dtype = trained(lambda: nn.Sequential(CONVOLUTIONS[kind](), nn.ReLU(), nn.Conv2d(3, 2, 1)))
    assert_twin(model, networks.images(dtype=dtype))


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_linear_layer_converts_as_what_it_computes(kind):
    model, dtype = trained(lambda: nn.Sequential(LINEAR[kind](), nn.ReLU(), nn.Linear(3, 2)))
    assert_twin(model, torch.randn(5, 4, dtype=dtype, generator=torch.Generator().manual_seed(0)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_bit_weights_are_those_that_the_spiking_network_has():
    """Taken for its base class, a quantisation-aware layer loses what it was trained with."""
    model, dtype = trained(lambda: nn.Sequential(quantised(qat.Conv2d, 2, 4, 3), nn.ReLU(), nn.Flatten()))
    network = convert(model, networks.images(8, dtype=dtype), ConversionConfig(steps=4, calibration="none"))
    weight = network.parameters[f"{network.graph.affines[0].name}.weight"]
    assert all(len(channel.unique()) <= 4 for channel in weight)
    assert len(model[0].weight[0].unique()) > 4


@pytest.mark.parametrize("kind", ["parametrized", "pruned", "qat", "spectral"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_layers_name_stands_for_a_weight_that_is_not_its_own(kind):
    """A state holds no computed weight: whoever folds the model's own is told so, and never gets another one."""
    model, _ = trained(lambda: nn.Sequential(CONVOLUTIONS[kind](), nn.ReLU(), nn.Conv2d(3, 2, 1)))
    graph = trace(model)
    assert [node.name for node in graph.affines] == ["conv2d", "2"]
    with pytest.raises(ValueError, match=r"the state has no conv2d\.weight, .*convert$"):
        fold(graph, model.state_dict())


def test_a_known_module_keeps_its_name_under_a_type_that_computes_the_same():
    class Renamed(nn.Conv2d):
        def describe(self) -> str:
            return "a convolution"

    graph = assert_twin(
        networks.trained(lambda: nn.Sequential(Renamed(2, 3, 3), nn.SyncBatchNorm(3), nn.ReLU())), networks.images()
    )
    assert [(node.name, node.norm) for node in graph.affines] == [("0", "1")]


class AlwaysDropping(nn.Dropout):
    """Drops in evaluation mode, too (Monte Carlo dropout)."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


class Statistical(nn.BatchNorm2d):
    """Takes the batch's statistics in evaluation mode, too."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


def observed(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: 3 * output)
    return layer


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: AlwaysDropping(), r"^0 \(AlwaysDropping\).*drops at random in evaluation mode"),
        (lambda: Statistical(2), r"^0 \(Statistical\).*batch's statistics in evaluation mode"),
        (
            lambda: Calls(lambda m, x: F.dropout(x)),
            r"^dropout \(dropout\).*test_tracer.py:\d+: drops at random",
        ),
        (lambda: observed(nn.Conv2d(2, 2, 1)), r"^0 \(Conv2d\).*has a forward hook, <lambda>.*remove it"),
        (lambda: torch.ao.nn.quantized.Linear(2, 2), r"^0 \(Linear\).*being of torch.ao.nn.quantized"),
        (lambda: nn.Bilinear(2, 2, 2), r"^0 \(Bilinear\).*use what converts"),
        (lambda: Calls(lambda m, x: F.instance_norm(x)), r"^instance_norm .*use batch normalisation"),
    ],
)
def test_what_computes_something_else_is_refused_by_name(layer, words):
    with pytest.raises(ConversionError, match=words) as error:
        trace(nn.Sequential(layer(), nn.Conv2d(2, 2, 1)))
    assert "\n" not in str(error.value)


# Shapes that a forward reads.


def conv(m: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(m.conv(x))


def asserted(m: nn.Module, x: Tensor) -> Tensor:
    x = conv(m, x)
    torch._assert(x.ndim == 4, f"expected 4 dimensions, found {x.ndim}")
    torch._assert(x.shape[2] == x.shape[3], "expected a square")
    assert x.dim() == len(x.shape) == len(x.size()) == 4
    return x.mean((2, 3))


def unpacked(m: nn.Module, x: Tensor) -> Tensor:
    x = conv(m, x)
    n, c, h, w = x.shape
    return x.view(n, c * h, w).flatten(2 if w == 6 else 1).reshape(x.size(0), c * h * w)


def shuffled(m: nn.Module, x: Tensor) -> Tensor:
    """Shuffle channels as ShuffleNet does."""
    x = conv(m, x)
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def padded_as_another(m: nn.Module, x: Tensor) -> Tensor:
    """Pad a value to the size of another, as a U-Net does."""
    small = F.interpolate(F.avg_pool2d(y := conv(m, x), 4), scale_factor=2)
    down, right = y.size()[2] - small.size()[2], y.size()[3] - small.size()[3]
    return torch.cat([y, F.pad(small, [right // 2, right - right // 2, down // 2, down - down // 2])], 1)


def resized_as_another(m: nn.Module, x: Tensor) -> Tensor:
    y = conv(m, x)
    small = F.avg_pool2d(y, 2)
    if small.shape[-2:] != y.shape[-2:]:
        small = F.interpolate(small, size=y.shape[2:], mode="bilinear", align_corners=False)
    return small[:, :, : y.shape[2], : y.shape[3]] + y


def padded_for_same(m: nn.Module, x: Tensor) -> Tensor:
    """Pad as TensorFlow's convolutions do."""
    ih, iw = x.size()[-2:]
    need = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in (iw, ih)]
    x = F.pad(x, [need[0] // 2, need[0] - need[0] // 2, need[1] // 2, need[1] - need[1] // 2])
    return F.relu(F.conv2d(x, m.conv.weight[:, :, 1:, 1:], stride=2))


SIZED = [asserted, unpacked, shuffled, padded_as_another, resized_as_another, padded_for_same]


@pytest.mark.parametrize("forward", SIZED)
def test_shapes_are_numbers_while_a_forward_is_traced(forward):
    model, images = (
        networks.trained(lambda: Calls(forward, conv=nn.Conv2d(2, 4, 3, padding=1))),
        networks.images(3),
    )
    graph = assert_twin(model, images, input_shape=(2, 6, 6))
    assert graph.image_shape == (2, 6, 6)
    network = convert(model, images, ConversionConfig(steps=3))
    assert network.graph.nodes == graph.nodes
    with pytest.raises(ValueError, match=r"do not fit the model: it was traced for images of shape \[2, 6, 6\]"):
        network.simulate(images[..., :5, :5], steps=3)
    if forward is asserted:  # what a graph computes is the same whether an assertion holds
        assert trace(model).image_shape is None
    else:
        with pytest.raises(ConversionError, match=r"give trace the input_shape"):
            trace(model)


def identities(m: nn.Module, x: Tensor) -> Tensor:
    x = conv(m, x.to(m.conv.weight.dtype).contiguous(memory_format=torch.channels_last))
    x = x.to(x.device, non_blocking=True).double().detach().type_as(x).to(x)
    return x.to(torch.float64).to(device="cpu", dtype=x.dtype).clone(memory_format=torch.preserve_format)


def known_without_an_image(m: nn.Module, x: Tensor) -> Tensor:
    x = conv(m, x)
    torch._assert(x.dim() == 4, "expected pictures")
    left, right = x.chunk(2, dim=1)
    first, *others = torch.split(x, x.shape[1] // 4, dim=1)
    return torch.cat([left, right + x[:, -2:], first, *others], -3).view(x.shape[0], -1)


@pytest.mark.parametrize("forward", [identities, known_without_an_image])
def test_what_no_image_decides_needs_none(forward):
    model = networks.trained(lambda: Calls(forward, conv=nn.Conv2d(2, 4, 3, padding=1)))
    assert assert_twin(model, networks.images()).image_shape is None
    assert trace(model, input_shape=(2, 6, 6)) == trace(model)


def test_a_graph_is_bound_to_the_image_by_what_is_read_alone():
    """The batch's size and a channel count are those of any image; a size in space is not."""
    for read, bound in ((lambda x: x.shape[0], False), (lambda x: x.shape[1], False), (lambda x: x.shape[-1], True)):
        model = Calls(lambda m, x, read=read: (y := conv(m, x), read(y))[0], conv=nn.Conv2d(2, 4, 3))
        assert (trace(model, input_shape=(2, 6, 6)).image_shape is not None) == bound


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda m, x: x.view(len(x), -1), "has a len().*write x.shape[0]"),
        (lambda m, x: x if x.ndim == 4 else x[None], "has dimensions that only the image tells.*input_shape"),
        (lambda m, x: x if conv(m, x).shape[2] > 4 else -x, "decides what the forward does.*input_shape"),
        (lambda m, x: [y for y in x.shape], "is iterated over.*only the image's shape tells it.*input_shape"),
        (lambda m, x: torch.stack(x.unbind(1)), "depends on the size of x along dimension 1.*input_shape"),
        (lambda m, x: conv(m, x).chunk(2)[0], "along dimension 0, which is the batch's"),
        (lambda m, x: conv(m, x).half(), "into torch.float16, the model's are torch.float32"),
        (lambda m, x: conv(m, x)[:, x[0]], "is indexed by|takes images out of the batch"),
        (lambda m, x: conv(m, x)[:, [0, 1]], "is indexed by [0, 1]; use numbers and slices"),
        (lambda m, x: conv(m, x).permute(1, 0, 2, 3), "leave the first one, the batch"),
        (lambda m, x: conv(m, x).__setitem__(0, 1), "is assigned to by index; join its parts"),
        (lambda m, x: conv(m, x).squeeze(), "squeezes every dimension; name"),
        (lambda m, x: (y := conv(m, x)) / y, "truediv (truediv).*a quotient is not linear"),
        (lambda m, x: m.conv(x, output_size=(3, 3)), "conv (Conv2d).*with keywords"),
        (lambda m, x: conv(m, x) * m.conv.weight[0], "no number per channel; make it the weight of a layer"),
    ],
)
def test_an_error_names_what_is_wrong_at_its_line(forward, words):
    with pytest.raises(ConversionError) as error:
        trace(Calls(forward, conv=nn.Conv2d(2, 3, 3)))
    message = str(error.value)
    assert "\n" not in message
    assert re.search(re.escape(words).replace(r"\.\*", ".*").replace(r"\|", "|"), message), message
    line = linecache.getline(__file__, int(re.search(rf"{re.escape(__file__)}:(\d+)", message)[1]))
    assert "lambda m, x" in line or "torch.relu(m.conv(x))" in line, (message, line)


def test_further_arguments_keep_their_defaults():
    class Options(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, mask: Tensor | None = None, *more: Tensor, twice: bool = False, **rest: int):
            x = torch.relu(self.layer(x))
            return x if mask is None and not twice and not more and not rest else x * 2

    model = networks.trained(Options)
    graph = assert_twin(model, torch.ones(2, 4, dtype=torch.float64))
    assert [type(node).__name__ for node in graph.nodes] == ["Affine", "Spike"]


def test_a_forward_that_writes_to_buffers_leaves_the_model_alone():
    class Counting(nn.ReLU):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    model = nn.Sequential(nn.Linear(4, 4), Counting())
    trace(model)
    assert model[1].calls == 0


def test_a_lazy_layer_converts_once_it_is_initialised():
    model = nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.ReLU()).double()
    with pytest.raises(ConversionError, match=r"^0 \(LazyConv2d\).*: is not initialised; call the model once"):
        trace(model)
    model(networks.images())
    assert [node.name for node in assert_twin(model.eval(), networks.images()).affines] == ["0"]
