"""What every model of the registry must be: of the stated size, traceable, and convertible in its parts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from snnfl.config import ConfigError, ModelConfig
from snnfl.models import build_model, check_model, names, register
from snnfl.rng import generator

# (name, batch_norm, conv_bias, input shape): parameters for 10 classes, ReLUs
SIZES = {
    ("lenet5", False, False, (1, 28, 28)): (61_706, 4),  # LeCun's count with average pooling
    ("lenet5", False, False, (3, 32, 32)): (62_006, 4),
    ("lenet5", False, False, (1, 8, 8)): (19_754, 4),
    ("lenet5", True, False, (1, 28, 28)): (61_706 + 2 * 22 - 22, 4),
    ("lenet5", True, True, (1, 28, 28)): (61_706 + 2 * 22, 4),
    ("convnet", False, False, (1, 28, 28)): (320 + 18_496 + 3_137_000 + 10_010, 3),
    ("convnet", False, False, (3, 32, 32)): (896 + 18_496 + 4_097_000 + 10_010, 3),
    ("convnet", True, False, (1, 28, 28)): (3_165_826 + 2 * 96 - 96, 3),
    ("convnet", True, True, (1, 28, 28)): (3_165_826 + 2 * 96, 3),
    ("cnn", False, False, (3, 32, 32)): (1_626_442, 3),
    ("conv_mlp", False, False, (3, 32, 32)): (1_792 + 16_777_472 + 2_570, 2),
    ("mlp", False, False, (4,)): (5_000 + 10_010, 1),
    ("mlp", True, False, (1, 8, 8)): (65_000 + 2_000 + 10_010, 1),
    ("fcnet", False, False, (4,)): (5_000 + 10_010, 1),
    ("vgg16", True, False, (3, 32, 32)): (14_724_042, 13),
    ("vgg16", True, True, (3, 32, 32)): (14_728_266, 13),  # the known count of VGG-16 with one linear layer
    ("resnet20", True, False, (3, 32, 32)): (272_474, 19),  # He's 269,722 and two projections
    ("resnet20", True, True, (3, 32, 32)): (272_474 + 784, 19),
    ("resnet20_snfl", True, False, (3, 32, 32)): (11_249_994, 20),  # the paper's
    ("resnet20_snfl", True, True, (3, 32, 32)): (11_249_994 + 3 * 64 + 4 * 64 + 5 * (128 + 256 + 512), 20),
}


def build(name, shape, *, classes=10, seed=0, **options):
    config = ModelConfig(name=name, **options)
    return build_model(config, input_shape=shape, classes=classes, generator=generator(seed, "weights"))


@pytest.fixture(params=SIZES, ids=str, scope="module")
def case(request):
    name, batch_norm, conv_bias, shape = request.param
    return build(name, shape, batch_norm=batch_norm, conv_bias=conv_bias), request.param


def test_every_model_is_covered():
    assert {name for name, *_ in SIZES} == set(names())


def test_size(case):
    model, key = case
    relus = sum(isinstance(module, nn.ReLU) for module in model.modules())
    assert (sum(parameter.numel() for parameter in model.parameters()), relus) == SIZES[key]


def test_traces_into_a_graph_of_modules_called_once(case):
    model, (*_, shape) = case
    model.eval()
    graph = fx.symbolic_trace(model)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    leaves = [name for name, module in model.named_modules() if not any(module.children())]
    assert sorted(targets) == sorted(leaves)  # no ReLU is shared, none is functional, no layer is idle
    functions = {node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"}
    assert functions <= {"add"}
    images = torch.randn(2, *shape, generator=generator(1, "images"))
    logits = model(images)
    assert logits.shape == (2, 10)
    assert torch.equal(graph(images), logits)


def test_layers_are_those_that_convert(case):
    model, (name, batch_norm, conv_bias, _) = case
    kinds = {type(module) for module in model.modules() if not any(module.children())}
    on_request = {nn.MaxPool2d} if name == "cnn" else set()
    convert = {nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d, nn.Flatten}
    assert kinds <= convert | on_request
    assert not any(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
    assert all((layer.bias is not None) == (conv_bias or not batch_norm) for layer in convolutions)


def test_all_trainable_parameters_get_a_gradient(case):
    model, (*_, shape) = case
    model.train()
    model.zero_grad()
    model(torch.randn(3, *shape, generator=generator(2, "images"))).logsumexp(1).sum().backward()
    assert [name for name, p in model.named_parameters() if (p.grad is None) == p.requires_grad] == []


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["lenet5", "convnet", "resnet20"]),
    channels=st.integers(1, 4),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    classes=st.integers(2, 12),
)
def test_any_image_fits_or_is_explained(name, channels, height, width, classes):
    shape = (channels, height, width)
    if min(height, width) < 4 and name != "resnet20":
        with pytest.raises(ConfigError, match=rf"model.name={name}: .*at least 4x4 pixels.*{height}x{width}; use"):
            build(name, shape)
        return
    assert build(name, shape, classes=classes).eval()(torch.zeros(1, *shape)).shape == (1, classes)


@pytest.mark.parametrize("name", ["vgg16", "resnet20_snfl"])
@pytest.mark.parametrize("shape", [(1, 45, 33), (3, 64, 64)])
def test_large_networks_take_other_sizes(name, shape):
    assert build(name, shape, classes=7).eval()(torch.zeros(1, *shape)).shape == (1, 7)


@pytest.mark.parametrize("name", sorted(set(names()) - {"mlp", "fcnet"}))
def test_convolutional_models_need_images(name):
    with pytest.raises(ConfigError, match=rf"model.name={name}: expected images .*\[30\]; use model.name=mlp"):
        build(name, (30,))


def test_vgg_says_how_large_its_images_must_be():
    with pytest.raises(ConfigError, match=r"model.name=vgg16: .*at least 32x32 pixels.*28x32; use larger images, or"):
        build("vgg16", (1, 28, 32))


def test_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match=r"model.name=resnet2O: unknown model; did you mean 'resnet20'\?"):
        check_model("resnet2O")
    with pytest.raises(ConfigError, match=f"known: {', '.join(names())}"):
        build("transformer!", (1, 8, 8))


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match=r"'lenet5' is already registered by snnfl.models.lenet"):
        register("lenet5")(lambda config, input_shape, classes: nn.Identity())
    check_model("lenet5")


@pytest.mark.parametrize(("name", "parameters"), [("lenet5", 61_706 + 2 * 22), ("convnet", 3_165_826 + 2 * 96)])
def test_group_normalisation_looks_at_each_sample_alone(name, parameters):
    model = build(name, (1, 28, 28), batch_norm=False, group_norm=2)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    images = torch.randn(3, 1, 28, 28, generator=generator(3, "images"))
    torch.testing.assert_close(model(images), torch.cat([model(image[None]) for image in images]))
    seen = []
    model.relu1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].unflatten(1, (2, -1))))
    model(images)
    assert seen[0].mean((2, 3, 4)).abs().max() < 1e-5
    torch.testing.assert_close(seen[0].var((2, 3, 4), correction=0), torch.ones(3, 2), rtol=1e-3, atol=0)
    spiking = build(name, (1, 28, 28), batch_norm=False, group_norm=2, neuron="lif", time_steps=3)
    assert spiking(images).shape == (3, 10)


def test_group_normalisation_that_cannot_be_is_said_in_one_line():
    with pytest.raises(ConfigError, match=r"model.group_norm=4: doesn't divide the 6 channels of conv1"):
        build("lenet5", (1, 28, 28), batch_norm=False, group_norm=4)
    with pytest.raises(ConfigError, match=r"model.name=mlp has none; take lenet5 or convnet"):
        build("mlp", (1, 28, 28), batch_norm=False, group_norm=2)
    with pytest.raises(ConfigError, match=r"in place of batch normalisation; set model.batch_norm=false"):
        build("lenet5", (1, 28, 28), group_norm=2)
