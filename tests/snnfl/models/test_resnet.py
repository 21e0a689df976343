import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from snnfl.config import ModelConfig
from snnfl.models import build_model, initialise
from snnfl.models.resnet import BasicBlock
from snnfl.rng import generator

IMAGE = (3, 32, 32)


def build(name):
    return build_model(ModelConfig(name=name), input_shape=IMAGE, classes=10, generator=generator(0, "weights")).eval()


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        # stem + stages (each with its projection) + pool + linear: the 187 million of facts.md, and He's 41 million
        (
            "resnet20_snfl",
            (1_728 + 36_864) * 1024
            + (36_864 + 4 * 36_864) * 256
            + (73_728 + 3 * 147_456 + 8_192) * 64
            + (294_912 + 3 * 589_824 + 32_768) * 16
            + (1_179_648 + 3 * 2_359_296 + 131_072) * 4
            + 2_048
            + 5_120,
        ),
        (
            "resnet20",
            (432 + 6 * 2_304) * 1024 + (4_608 + 5 * 9_216 + 512) * 256 + (18_432 + 5 * 36_864 + 2_048) * 64 + 640,
        ),
    ],
)
def test_multiply_accumulates(name, operations):
    with FlopCounterMode(display=False) as counter:
        build(name)(torch.zeros(1, *IMAGE))
    assert counter.get_total_flops() == 2 * operations


def test_the_constant_pool_is_the_average_and_stays_it():
    model = build("resnet20_snfl")
    maps = torch.randn(2, 512, 2, 2, generator=generator(1, "maps"))
    assert torch.equal(model.pool(maps), functional.avg_pool2d(maps, 2))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["pool.weight"]


@pytest.mark.parametrize(("inputs", "stride"), [(8, 1), (8, 2), (4, 1)])
def test_block_is_the_equation(inputs, stride):
    block = BasicBlock(inputs, 8, stride=stride, bias=True)
    initialise(block, generator(0, "weights"))
    for index, norm in enumerate(module for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5, generator=generator(index, "norm"))
    block.eval()
    x = torch.randn(2, inputs, 9, 9, generator=generator(1, "input"))

    def normalised(values, norm):
        shape = (1, -1, 1, 1)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return (values - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)

    inner = normalised(functional.conv2d(x, block.conv1.weight, block.conv1.bias, stride, 1), block.norm1).clamp(min=0)
    outer = normalised(functional.conv2d(inner, block.conv2.weight, block.conv2.bias, 1, 1), block.norm2)
    if (inputs, stride) == (8, 1):
        assert block.shortcut is None
        residual = x
    else:
        projection = block.shortcut.conv
        residual = normalised(functional.conv2d(x, projection.weight, projection.bias, stride), block.shortcut.norm)
    torch.testing.assert_close(block(x), (outer + residual).clamp(min=0))
