"""Small networks that tests of conversion share: every supported structure, with random trained state."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Calls(nn.Module):
    """A forward given as a function of the module and the image, with layers to call."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.calls = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.calls(self, x)


class Plain(nn.Module):
    """Convolution, average pooling, linear; biases, no batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.hidden = nn.Linear(4 * 3 * 3, 8)
        self.relu_hidden = nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv(x)))
        return self.head(self.relu_hidden(self.hidden(torch.flatten(x, 1))))


class Residual(nn.Module):
    """Two residual blocks, one with a projection, an average pooling that spikes, and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=True)
        self.norm1 = nn.BatchNorm2d(4)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.project = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.relu_pool = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(6, 5, bias=False)
        self.norm3 = nn.BatchNorm1d(5)
        self.relu3 = nn.ReLU()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu1(self.norm1(self.conv1(x)) + x)
        x = self.relu2(self.norm2(self.conv2(x)) + self.project(x))
        x = self.relu_pool(self.pool(x))
        return self.head(self.relu3(self.norm3(self.hidden(self.drop(x.view(x.size(0), -1))))))


class Joined(nn.Module):
    """Concatenation of a constant and a spiking branch, an addition of the image's own, functional ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 3, 1)
        self.right = nn.Conv2d(2, 2, 3, padding=1)
        self.relu = nn.ReLU()
        self.mix = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), self.relu(self.right(x) + x)], dim=1)
        return self.head(torch.relu(self.mix(joined)).reshape(-1, 4 * 36))


class Dense(nn.Module):
    """Batch normalisation that folds into no layer: of a value that others read, of a concatenation, of a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(3)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(5)
        self.clip = nn.ReLU6()
        self.conv2 = nn.Conv2d(5, 4, 1)
        self.pool = nn.AvgPool2d(2)
        self.norm3 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(self.relu1(self.norm1(x)))], 1)
        x = self.pool(self.conv2(self.clip(self.norm2(x))))
        return self.head(torch.relu(self.norm3(x)).mean([2, 3]))


class PreActivation(nn.Module):
    """Residual blocks whose ReLU comes first, and a dense block: several spiking layers read one value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (4, 4, 4, 4, 6, 9))
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3))
        self.grow1 = nn.Conv2d(4, 2, 3, padding=1)
        self.grow2 = nn.Conv2d(6, 3, 1, bias=False)
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + conv(torch.relu(norm(x)))
        x = torch.cat([x, self.grow1(torch.relu(self.norms[3](x)))], 1)
        x = torch.cat([x, self.grow2(torch.relu(self.norms[4](x)))], 1)
        return self.head(torch.relu(self.norms[5](x)).mean([2, 3]))


class MaxPooled(nn.Module):
    """Max pooling behind a ReLU, as module and function, and in front of one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, 1, padding=1)
        self.conv2 = nn.Conv2d(4, 5, 3, padding=1)
        self.relu2 = nn.ReLU6()
        self.conv3 = nn.Conv2d(5, 6, 2)
        self.pool3 = nn.MaxPool2d(2, ceil_mode=True)
        self.relu3 = nn.ReLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.norm1(self.conv1(x))))
        x = F.max_pool2d(self.relu2(self.conv2(x)), 2)
        return self.head(self.relu3(self.pool3(self.conv3(x))).flatten(1))


class Gated(nn.Module):
    """Maxima that stand in front of no neurons: of a concatenation, of what others read, and before the readout."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 3, padding=1)
        self.mix, self.up = nn.Conv2d(5, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, stride=2, bias=False)
        self.norm, self.one = nn.BatchNorm2d(4), nn.Conv2d(5, 1, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        y = torch.relu(self.mix(F.max_pool2d(x, 2)))
        z = self.norm(self.up(y)) + self.one(x)
        z = torch.relu(z - F.max_pool2d(x, 3, 1, padding=1)[:, :4])
        z = F.max_pool2d(z, 2) + F.interpolate(F.avg_pool2d(z, 2), scale_factor=1)
        return self.head(F.adaptive_max_pool2d(z, 1).flatten(1))


def trained(network: type[nn.Module], seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build a network with random weights and statistics, gamma of both signs, in evaluation mode."""
    draw = torch.Generator().manual_seed(seed)
    model = network().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * (0.5 if parameter.dim() == 1 else 0.35))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(len(module.running_mean), generator=draw) * 0.3)
                module.running_var.copy_(torch.rand(len(module.running_var), generator=draw) + 0.2)
                signs = torch.sign(torch.randn(len(module.weight), generator=draw))
                module.weight.copy_((torch.rand(len(module.weight), generator=draw) + 0.5) * signs)
    return model


def images(count: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw images of the shape that these networks take, ``[count, 2, 6, 6]``."""
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
