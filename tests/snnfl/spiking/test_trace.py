from __future__ import annotations

import linecache
import re
from collections.abc import Callable

import networks
import pytest
import torch
import torch.nn.functional as F
from networks import Calls
from torch import Tensor, nn

from snnfl.conversion import fold
from snnfl.spiking import Affine, ConversionError, LinearMap, MaxPool, Spike, SpikingGraph, SpikingNetwork, trace


def twin_of(model: nn.Module, graph: SpikingGraph) -> SpikingNetwork:
    return SpikingNetwork(graph, fold(graph, model.state_dict()))


def site_of(graph: SpikingGraph, name: str) -> str | None:
    """Name the layer that calibrates a value, where all values have equal channels."""
    site = graph.calibration_site(name, dict.fromkeys((graph.input, *graph.by_name), 1))
    return None if site is None else site.name


@pytest.mark.parametrize("network", [networks.Plain, networks.Residual, networks.Joined, networks.Dense])
def test_the_analog_twin_is_the_model(network):
    """Folding, aliases, shapes and order are right if the graph with ReLU computes what the model computes."""
    model, images = networks.trained(network), networks.images()
    torch.testing.assert_close(twin_of(model, trace(model)).analog(images), model(images), rtol=1e-12, atol=1e-12)


def shared_and_in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    other = y
    y += x.clone()
    m.relu(y)  # changes y and other, whose result nobody uses
    return torch.relu(m.relu(other + y) + m.drop(y))


def in_place_on_a_clone(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = y.clone()
    return F.relu_(z) + y.add_(z).relu_() + torch.relu_(torch.cat([y], 1))


def repeated_terms(m: nn.Module, x: Tensor) -> Tensor:
    x = torch.relu(m.conv(x))
    return torch.relu(m.mix(torch.cat([x, x + x, x], dim=1)))


def names_that_collide(m: nn.Module, x: Tensor) -> Tensor:
    return m.relu(m.input(torch.relu(m.relu(m.conv(x)))) + m.relu_1(x))


def functions(m: nn.Module, x: Tensor) -> Tensor:
    x = F.avg_pool2d(F.relu6(m.conv(x), inplace=True), 3, stride=1, padding=1)
    x = F.adaptive_avg_pool2d(F.dropout(x.contiguous(), 0.5, training=m.training), (3, None))
    x = torch.cat([m.seen(F.relu(x)), x], 1).mean((2, 3), keepdim=True)
    return F.hardtanh(x, 0.0, 2.0).flatten(start_dim=1).reshape(-1, 4)


def batch_size_of_the_shape(m: nn.Module, x: Tensor) -> Tensor:
    n, *_ = (x.shape[0], 0)
    return torch.relu(torch.reshape(m.conv(x), (n, -1))).view(x.size()[0], 2, -1)


def dead_ends(m: nn.Module, x: Tensor) -> Tensor:
    torch.relu(x)
    x = m.norm(m.conv(x))  # alone read by what counts
    torch.relu(x)
    return torch.relu(x)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(2, 2, 3, padding="same", dilation=2),
    "mix": lambda: nn.Conv2d(6, 2, 1),
    "input": lambda: nn.Conv2d(2, 2, 1, groups=2),
    "relu_1": lambda: nn.Conv2d(2, 2, 1),
    "relu": lambda: nn.ReLU(inplace=True),
    "drop": lambda: nn.Dropout2d(),
    "seen": lambda: nn.Identity(),
    "norm": lambda: nn.BatchNorm2d(2),
}


@pytest.mark.parametrize(
    ("forward", "layers"),
    [
        (shared_and_in_place, ["conv", "relu", "drop"]),
        (in_place_on_a_clone, ["conv"]),
        (repeated_terms, ["conv", "mix"]),
        (names_that_collide, ["conv", "input", "relu_1", "relu"]),
        (functions, ["conv", "seen"]),
        (batch_size_of_the_shape, ["conv"]),
        (dead_ends, ["conv", "norm"]),
    ],
)
def test_the_analog_twin_of_unusual_calls(forward, layers):
    """Changes in place show under every name of a tensor, and two layers never share a name."""
    model = networks.trained(lambda: Calls(forward, **{name: LAYERS[name]() for name in layers}))
    graph, images = trace(model), networks.images()
    expected = model(images.clone())
    torch.testing.assert_close(twin_of(model, graph).analog(images), expected, rtol=1e-12, atol=1e-12)
    assert len(graph.by_name) == len(graph.nodes)
    assert graph.input not in graph.by_name


def test_batch_normalisation_that_folds_into_no_layer_is_a_layer():
    graph = trace(networks.trained(networks.Dense))
    norms = {node.name: (node.op, node.norm) for node in graph.affines}
    assert norms == {
        "stem": ("conv2d", None),
        "norm1": ("scale", "norm1"),
        "conv1": ("conv2d", None),
        "norm2": ("scale", "norm2"),
        "conv2": ("conv2d", None),
        "norm3": ("scale", "norm3"),
        "head": ("linear", None),
    }
    sites = [site_of(graph, node.inputs[0]) for node in graph.spikes]
    assert sites == ["norm1", "norm2", "norm3"]


def test_a_layer_under_two_names_is_read_by_whoever_reads_either():
    """An identity hides that the convolution is read twice; its batch normalisation must not fold into it."""
    model = networks.trained(
        lambda: Calls(
            lambda m, x: torch.relu((y := m.conv(x)) + m.norm(m.seen(y))),
            **{name: LAYERS[name]() for name in ("conv", "norm", "seen")},
        )
    )
    graph, images = trace(model), networks.images()
    assert [node.op for node in graph.affines] == ["conv2d", "scale"]
    torch.testing.assert_close(twin_of(model, graph).analog(images), model(images), rtol=1e-12, atol=1e-12)


def test_a_clipped_relu_keeps_its_ceiling():
    graph = trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU6(), nn.Linear(2, 2), nn.Hardtanh(0, 3), nn.ReLU()))
    assert [node.ceiling for node in graph.spikes] == [6.0, 3.0, None]


def test_max_pooling_moves_before_the_neurons():
    """Of one maximum right before a ReLU, one right behind and one behind a clipped ReLU, the analog twin is exact."""
    model, images = networks.trained(networks.MaxPooled), networks.images()
    graph = trace(model, max_pooling="gated")
    kinds = [type(node) for node in graph.nodes]
    assert kinds == [Affine, MaxPool, Spike, Affine, MaxPool, Spike, Affine, MaxPool, Spike, LinearMap, Affine]
    assert [node.name for node in graph.spikes] == ["relu1", "relu2", "relu3"]
    torch.testing.assert_close(twin_of(model, graph).analog(images), model(images), rtol=1e-12, atol=1e-12)
    pools = {node.name for node in graph.nodes if isinstance(node, MaxPool)}
    assert pools == {"pool1", "max_pool2d", "pool3"}
    assert not pools & graph.tail
    # A shift of a bias passes a maximum unchanged.
    assert [site_of(graph, node.inputs[0]) for node in graph.spikes] == ["conv1", "conv2", "conv3"]
    assert all(graph.channels(pool, fold(graph, model.state_dict())) in (4, 5, 6) for pool in pools)


def test_max_pooling_becomes_average_pooling():
    model, images = networks.trained(networks.MaxPooled), networks.images()
    graph = trace(model, max_pooling="average")
    assert all(isinstance(node, Affine | LinearMap | Spike) for node in graph.nodes)
    model.pool1 = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
    model.pool3 = nn.AvgPool2d(2, ceil_mode=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "max_pool2d", F.avg_pool2d)
        expected = model(images)
    torch.testing.assert_close(twin_of(model, graph).analog(images), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("average", "most"), [(nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), (nn.AvgPool1d, nn.MaxPool1d)]
)
def test_pooling_in_one_dimension(average, most):
    def build(pool: type[nn.Module]) -> nn.Module:
        layers = (nn.Conv1d(2, 4, 3, stride=2, groups=2), nn.BatchNorm1d(4), nn.ReLU(), pool(3), nn.Flatten())
        return networks.trained(lambda: nn.Sequential(*layers))

    images = networks.images().flatten(2)
    averaged, maximum = build(average), build(most)
    for model, expected, pooling in ((maximum, averaged, "average"), (maximum, maximum, "gated")):
        twin = twin_of(model, trace(model, max_pooling=pooling))
        torch.testing.assert_close(twin.analog(images), expected(images), rtol=1e-12, atol=1e-12)


def test_nodes_carry_the_modules_names():
    graph = trace(networks.trained(networks.Residual))
    assert [node.name for node in graph.spikes] == ["stem.2", "relu1", "relu2", "relu_pool", "relu3"]
    assert {node.name: node.norm for node in graph.affines} == {
        "stem.0": "stem.1",
        "conv1": "norm1",
        "conv2": "norm2",
        "project.0": "project.1",
        "hidden": "norm3",
        "head": None,
    }


def test_calibration_sites():
    graph = trace(networks.trained(networks.Residual))
    names = {node.name: site_of(graph, node.inputs[0]) for node in graph.spikes}
    # The pooling layer has no bias in front of it; through an addition, its first term that nothing else reads.
    assert names == {"stem.2": "stem.0", "relu1": "conv1", "relu2": "conv2", "relu_pool": None, "relu3": "hidden"}


def test_a_bias_that_shifts_other_values_too_calibrates_nothing():
    layers = {name: LAYERS[name]() for name in ("conv", "input")}
    graph = trace(Calls(lambda m, x: torch.relu(y := m.conv(x)) + torch.relu(m.input(y)), **layers))
    assert [site_of(graph, node.inputs[0]) for node in graph.spikes] == [None, "input"]
    doubled = trace(Calls(lambda m, x: torch.relu((y := m.conv(x)) + y), conv=LAYERS["conv"]()))
    assert site_of(doubled, "add") is None


def test_channels_are_counted_from_the_weights():
    model = networks.trained(networks.Joined)
    graph = trace(model)
    weights = fold(graph, model.state_dict())
    counts = {node.name: graph.channels(node.name, weights) for node in graph.nodes}
    shown = {"left": 3, "right": 2, "add": 2, "relu": 2, "cat": 5, "mix": 4, "relu_1": 4, "reshape": 144, "head": 3}
    assert counts == shown
    model = networks.trained(networks.Plain)
    with pytest.raises(ValueError, match="one threshold per layer"):
        (graph := trace(model)).channels("flatten", fold(graph, model.state_dict()))


def test_what_varies_and_what_is_computed_once():
    graph = trace(networks.trained(networks.Joined))
    assert not {"left", "right", "add"} & graph.varying
    assert {"cat", "relu", "mix", "head"} <= graph.varying | {"relu_1"}
    assert graph.tail == {"reshape", "head"}
    assert graph.readout_inputs == ("relu_1",)


def test_a_relu_module_may_be_shared():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.relu = nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.relu(self.first(self.relu(self.first_input(x)))))

        def first_input(self, x: torch.Tensor) -> torch.Tensor:
            return x

    graph = trace(Shared())
    assert len(graph.spikes) == 2
    assert len({node.name for node in graph.spikes}) == 2


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Linear(4, 4), nn.GELU()], ["1 (GELU)", "nn.ReLU"]),
        ([nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU()], ["1 (LayerNorm)", "batch normalisation"]),
        ([nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU()], ["running statistics"]),
        ([nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU()], ["0", "reflect", "zero padding"]),
        ([nn.ReLU(), nn.Flatten(0)], ["1 (Flatten)", "from 0 to -1", "flatten(1)"]),
        ([nn.ReLU(), nn.AvgPool2d(2, divisor_override=3)], ["1 (AvgPool2d)", "divisor_override", "leave it out"]),
        ([nn.ReLU(), nn.MaxPool2d(2, return_indices=True)], ["1 (MaxPool2d)", "return_indices", "maxima alone"]),
        ([nn.ReLU(), nn.Hardtanh(-1, 1)], ["1 (Hardtanh)", "nn.Hardtanh(0, 1)"]),
        ([nn.Linear(4, 2)], ["no ReLU", "put nn.ReLU"]),
        ([nn.ReLU(), nn.Softmax(1)], ["1 (Softmax)", "drop it"]),
        ([nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv3d(3, 2, 3)], ["2 (Conv3d)", "use what converts"]),
        ([nn.LazyLinear(4), nn.ReLU()], ["0 (LazyLinear)", "not initialised", "call the model once"]),
        ([nn.Linear(4, 4), nn.ReLU(), nn.ConstantPad1d(1, float("inf"))], ["2 (ConstantPad1d)", "finite number"]),
    ],
)
def test_what_does_not_convert_is_named(layers, words):
    with pytest.raises(ConversionError) as error:
        trace(nn.Sequential(*layers))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda m, x: F.gelu(m.layer(x)), ["gelu (gelu)", "nn.ReLU"]),
        (lambda m, x: m.attention(x, x, x)[0], ["attention (MultiheadAttention)", "product of two activations"]),
        (lambda m, x: m.lstm(x)[0], ["lstm (LSTM)", "gates"]),
        (lambda m, x: F.softmax(x, 1), ["softmax (softmax)", "drop it, where it comes last", "product of two"]),
        (lambda m, x: F.log_softmax(x, 1), ["log_softmax (log_softmax)", "drop it, where it comes last"]),
        (lambda m, x: F.softmax(x, 1).relu(), ["softmax (softmax)", "product of two activations"]),
        (lambda m, x: m.encoder(x), ["encoder (TransformerEncoderLayer)", "product of two activations"]),
        (lambda m, x: torch.relu(x[:1]), ["getitem (getitem)", "images out of the batch", "with a colon"]),
        (lambda m, x: torch.clamp(x, min=-1), ["clamp (clamp)", "-1", "clamp(min=0)"]),
        (lambda m, x: m.line(x).relu().mean(-2), ["mean (mean)", "[1]", "2 and 3"]),
        (lambda m, x: [y for y in x], ["Calls", "x (x)", "iterated over", "control flow"]),
        (lambda m, x: x @ x.T, ["getattr", "use what converts"]),
        (lambda m, x: torch.matmul(x, x), ["matmul (matmul)", "product of two activations"]),
        (lambda m, x: x if x > 0 else -x, ["gt (gt)", "control flow that depends on data"]),
        (lambda m, x: x if x.sum() > 0 else -x, ["gt (gt)", "control flow that depends on data"]),
        (lambda m, x: x if (x.abs().max() < 3).all() else -x, ["all_1 (all)", "control flow that depends on data"]),
        (lambda m, x: [y for y in x.cumsum(1)], ["cumsum (cumsum)", "iterated over", "control flow that depends"]),
        (lambda m, x: (x.cumsum(1), x if x > 0 else -x), ["cumsum (cumsum)", "use what converts"]),
        (lambda m, x: (x.cumsum(1), x.relu() if x.shape[0] else x), ["cumsum (cumsum)", "use what converts"]),
        (lambda m, x: x.relu() + (x > 0), ["gt (gt)", "a comparison is not linear"]),
        (lambda m, x: m.layer(m.layer(x)), ["layer (Linear)", "called twice", "a layer of its own"]),
        (lambda m, x: m.layer(input=x), ["layer (Linear)", "keywords"]),
        (lambda m, x: torch.relu(x) * x, ["mul (mul)", "multiplies two activations"]),
        (lambda m, x: torch.relu(x) + float("nan"), ["add (add)", "takes nan", "finite number"]),
        (lambda m, x: torch.add(x, x, alpha=x), ["add (add)", "takes x as an option"]),
        (lambda m, x: torch.relu(x) + m.constant, ["add (add)", "constant of shape [4]", "input_shape"]),
        (lambda m, x: torch.cat([x, x]), ["cat (cat)", "dimension 0", "join channels"]),
        (lambda m, x: x.mean(1), ["mean (mean)", "[1]", "2 and 3"]),
        (lambda m, x: x.mean(), ["mean (mean)", "all", "2 and 3"]),
        (lambda m, x: x.view(x.size(1), -1), ["view (view)", "size", "flatten(1)"]),
        (lambda m, x: x.view(3, -1), ["view (view)", "(3, -1)", "the batch's own"]),
        (lambda m, x: x.view(-1, x.shape[1] * x.shape[2]), ["view (view)", "image's size", "input_shape"]),
        (lambda m, x: F.avg_pool2d(x, x.size()[2:]), ["avg_pool2d", "image's size", "adaptive pooling"]),
        (lambda m, x: (x.flatten(1), x.relu_())[0] + x, ["add (add)", "changed in place"]),
        (lambda m, x: (x, x), ["output", "one tensor"]),
    ],
)
def test_a_call_that_does_not_convert_is_named_with_its_line(forward, words):
    layers = {"layer": nn.Linear(4, 4), "attention": nn.MultiheadAttention(4, 2), "lstm": nn.LSTM(4, 4)}
    layers |= {"encoder": nn.TransformerEncoderLayer(4, 2), "line": nn.Conv1d(2, 2, 3)}
    model = Calls(forward, **layers)
    model.register_buffer("constant", torch.ones(4))
    with pytest.raises(ConversionError) as error:
        trace(model)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    if "output" not in words:
        line = linecache.getline(__file__, int(re.search(rf"{re.escape(__file__)}:(\d+): ", message)[1]))
        assert words[0] in line, (message, line)


def test_a_model_of_two_inputs_is_named():
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return torch.relu(left + right)

    with pytest.raises(ConversionError, match="left, right"):
        trace(Two())


def test_what_evaluation_mode_does_not_use_is_left_out():
    """As the auxiliary heads of torchvision's GoogLeNet; its own norm takes part in training alone."""
    model = Calls(
        lambda m, x: m.aux(x) if m.training else torch.relu(m.used(x)), used=nn.Linear(4, 4), aux=nn.Linear(4, 9)
    )
    assert [node.name for node in trace(model.train()).affines] == ["used"]


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: 3 * output)
    return layer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (hooked, r"0 \(Linear\)\S*.* has a forward hook, <lambda>, .*remove it"),
        (torch.compile, r"0 \(OptimizedModule\): .*_orig_mod"),
        (torch.jit.script, r"0 \(RecursiveScriptModule\): .*the module it was made from"),
        (nn.DataParallel, r"0 \(DataParallel\): .*\.module"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_runs_around_a_layer_is_named_with_the_way_out(change, words):
    model = nn.Sequential(change(nn.Linear(4, 4)), nn.ReLU())
    with pytest.raises(ConversionError, match=rf"^{words}"):
        trace(model)


def test_a_hook_on_the_model_itself_is_named():
    with pytest.raises(ConversionError, match=r"^the model \(Sequential\): has a forward hook"):
        trace(hooked(nn.Sequential(nn.Linear(4, 4), nn.ReLU())))


def test_a_module_of_pytorchs_own_is_named_by_its_path_and_no_line_of_whoever_traces():
    inner = nn.Sequential(nn.Flatten(), nn.Tanh())
    with pytest.raises(ConversionError, match=r"^2\.1 \(Tanh\): does not convert to a spiking layer; use nn\.ReLU"):
        trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), inner))


def test_a_forward_that_was_replaced_on_the_model_is_named():
    """``torch.fx`` looks at the type alone, and would trace another network."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.forward = lambda x: x
    with pytest.raises(ConversionError, match=r"^the model \(Sequential\): its forward was replaced on the object"):
        trace(model)
    assert trace(nn.Sequential(model, nn.ReLU())).affines == ()  # called by another, it is what it computes


def other_spellings(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.clamp(m.norm(m.conv(x)), min=0)
    y = torch.cat([y, m.alone(y).clamp(0, 0.5)], dim=-3)
    return y.flatten(start_dim=1, end_dim=3)


def test_other_spellings_and_batch_normalisation_without_parameters():
    """A norm without gamma and beta folds, or stands alone, as one with 1 and 0."""
    layers = {
        "conv": nn.Conv2d(2, 2, 3),
        "norm": nn.BatchNorm2d(2, affine=False),
        "alone": nn.BatchNorm2d(2, affine=False),
    }
    model, images = Calls(other_spellings, **layers).double(), networks.images()
    for norm in (model.norm, model.alone):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    graph = trace(model.eval())
    assert [node.op for node in graph.affines] == ["conv2d", "scale"]
    assert [node.ceiling for node in graph.spikes] == [None, 0.5]
    torch.testing.assert_close(twin_of(model, graph).analog(images), model(images), rtol=1e-12, atol=1e-12)


def test_a_mean_over_channels_of_an_image_is_an_error_once_its_size_is_known():
    graph = trace(Calls(lambda m, x: torch.relu(x).mean(-2)))
    with pytest.raises(ValueError, match=r"do not fit the model: mean: mean over \[-2\] of \[1, 2, 36\]"):
        SpikingNetwork(graph, {"relu.threshold": torch.ones(1)}).simulate(torch.ones(3, 2, 36), steps=1)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: F.max_pool2d(x, 2).relu().mean([2, 3]) + F.max_pool2d(x, 6).flatten(1),
        lambda m, x: F.max_pool2d(y := torch.relu(x), 1) + y,
        lambda m, x: F.max_pool2d(F.avg_pool2d(torch.relu(x), 2), 2),
    ],
)
def test_a_maximum_needs_no_neurons_of_its_own(forward):
    graph, images = trace(Calls(forward)), networks.images()
    torch.testing.assert_close(SpikingNetwork(graph, {}).analog(images), forward(None, images))
    assert graph.maxima


def test_a_linear_layer_on_channels_that_are_not_its_outputs_is_an_error():
    model = networks.trained(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    with pytest.raises(ValueError, match=r"0: linear on \[6, 2, 6, 6\]; flatten"):
        twin_of(model, trace(model)).analog(networks.images())


def test_tracing_leaves_the_model_alone():
    """A graph is that of evaluation mode whatever mode each module is in, and stays in."""
    model = Calls(lambda m, x: torch.sigmoid(x) if m.training else m.net(x), net=networks.trained(networks.Residual))
    model.net.drop.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert len(trace(model).spikes) == 5
    assert [name for name, module in model.named_modules() if module.training] == ["", "net.drop"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ConversionError):
        trace(Calls(lambda m, x: x if x.sum() > 0 else -x).train())


def test_kinds_of_node():
    graph = trace(networks.trained(networks.Plain))
    kinds = [type(node) for node in graph.nodes]
    assert kinds == [Affine, Spike, LinearMap, LinearMap, Affine, Spike, Affine]
