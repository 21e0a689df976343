"""torchvision's own networks: the analog twin is the network, and they convert."""

from __future__ import annotations

import pytest
import stepwise
import torch
from torch import Tensor, nn

from snnfl.conversion import ConversionConfig, convert_state, fold
from snnfl.spiking import LinearMap, MaxPool, SpikingGraph, SpikingNetwork, trace
from snnfl.torchvision_guard import guard


def trained(name: str) -> nn.Module:
    """Build a network whose activations neither vanish nor explode, with statistics and gamma away from 0 and 1."""
    guard()
    from torchvision.models import get_model

    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    draw = torch.Generator().manual_seed(0)
    with torch.device("meta"):  # the networks' own initialisation takes seconds
        model = get_model(name, num_classes=5, **options)
        if name == "vgg16_bn":  # its 4096 hidden units would take 1 GB
            model.classifier[0], model.classifier[3] = nn.Linear(512 * 7 * 7, 32), nn.Linear(32, 32)
            model.classifier[6] = nn.Linear(32, 5)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, generator=draw)
                if module.bias is not None:
                    module.bias.normal_(std=0.1, generator=draw)
            elif isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.7, 1.3),
                    (module.bias, -0.2, 0.2),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.6, 1.4),
                ):
                    tensor.uniform_(low, high, generator=draw)
    return model


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def average_pooled(model: nn.Module) -> nn.Module:
    """Replace every max pooling of a model by average pooling."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MaxPool2d):
            window = (module.kernel_size, module.stride, module.padding, module.ceil_mode)
            model.set_submodule(name, nn.AvgPool2d(*window, count_include_pad=False))
    return model


def assert_twin(model: nn.Module, graph: SpikingGraph) -> None:
    """Compare the analog twin with the model in both precisions; the model's logits are of order 1 to 10."""
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        model = model.to(dtype)
        with torch.no_grad():
            expected = model(images(dtype))
        assert 0.1 < expected.std() < 100
        found = SpikingNetwork(graph, fold(graph, model.state_dict())).analog(images(dtype))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "neurons", "alone"),
    [("resnet18", 17, 0), ("vgg16_bn", 15, 0), ("mobilenet_v2", 35, 0), ("densenet121", 121, 62), ("googlenet", 57, 0)],
)
def test_with_average_pooling(name, neurons, alone):
    model = trained(name)
    graph = trace(model, max_pooling="average")
    assert len(graph.spikes) == neurons
    assert sum(node.op == "scale" for node in graph.affines) == alone
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert_twin(average_pooled(model), graph)

    network = convert_state(graph, state, images(), ConversionConfig(steps=4))
    assert all((level > 0).all() for level in network.thresholds.values())
    clipped = [node.name for node in graph.spikes if node.ceiling is not None]
    assert len(clipped) == (35 if name == "mobilenet_v2" else 0)
    assert all((network.thresholds[layer] <= 6).all() for layer in clipped)
    # The readout is calibrated last, so on the calibration images the mean logits are the ANN's.
    mean = model.float()(images()).mean(0)
    torch.testing.assert_close(network.simulate(images(), steps=4)[4].mean(0), mean, rtol=1e-3, atol=1e-3)
    # In double precision no rounding decides on a spike: one more or less would show.
    network, picture = network.to(dtype=torch.float64), images(torch.float64)[:1]
    found = network.simulate(picture, steps=4, curve=(1, 2, 3))
    for length, logits in stepwise.logits(network, picture, 4).items():
        torch.testing.assert_close(found[length], logits, rtol=1e-9, atol=1e-9)


def test_googlenet_as_users_get_it():
    """With the auxiliary heads of training, which evaluation leaves out; pretrained ones transform their input."""
    guard()
    from torchvision.models import googlenet

    with torch.device("meta"):
        model = googlenet(num_classes=5, init_weights=False)
        transforming = googlenet(num_classes=5, init_weights=False, transform_input=True)
    assert len(trace(model).spikes) == 57
    graph = trace(transforming)
    assert len(graph.spikes) == 57
    taken = [node.arguments["index"][0] for node in graph.nodes if isinstance(node, LinearMap) and node.op == "slice"]
    assert taken == [0, 1, 2]  # of the image, each channel apart


@pytest.mark.parametrize(
    ("name", "pools"), [("resnet18", 1), ("vgg16_bn", 5), ("densenet121", 1), ("googlenet", 13), ("squeezenet1_1", 3)]
)
def test_with_gated_max_pooling(name, pools):
    """The analog twin is the network as it is, behind a concatenation and over what others read, too."""
    model = trained(name)
    graph = trace(model)
    assert sum(isinstance(node, MaxPool) for node in graph.nodes) == pools
    assert_twin(model, graph)
