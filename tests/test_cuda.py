"""What runs on a GPU does what it does on a CPU: federations, conversion, an audit.

Skipped where there is no CUDA device. Batches of float32 are summed in another order there, so weights and verdicts
agree to what that order changes, and spikes on one device are equal bit for bit, whichever kernel computes them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import snnfl
from snnfl.config import ConversionConfig, DataConfig, ModelConfig
from snnfl.conversion import convert
from snnfl.data import load
from snnfl.models.registry import build_model
from snnfl.neurons import kernels
from snnfl.rng import generator

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

SMALL: dict[str, Any] = {
    "data": {"clients": 4, "training_images": 400, "test_images": 200},
    "model.name": "lenet5",
    "training": {"epochs": 1, "batch_size": 16},
    "conversion": {"steps": 16, "calibration_images": 32},
    "evaluation.clients": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "FedAvg": {"strategy.spiking": False},
    "S-FedAvg": {},
    "few steps": {"conversion.steps": 4, "conversion.signed": True, "conversion.burst": 2},
    "SNN": {"strategy.spiking": False, "model.neuron": "lif", "model.time_steps": 4},
    "learned": {"strategy.spiking": False, "model.neuron": "lif", "model.time_steps": 4, "model.learn_beta": True},
    "adaptive": {"strategy.spiking": False, "model.neuron": "alif", "model.time_steps": 4},
    "2 bits": {"strategy.spiking": False, "quantization.weights": 2, "quantization.uploads": 8},
    "group normalisation": {"strategy.spiking": False, "model.batch_norm": False, "model.group_norm": 2},
    "DP-SGD": {
        "strategy.spiking": False, "model.batch_norm": False, "privacy.mechanism": "example",
        "privacy.clipping_norm": 1.0, "privacy.noise_multiplier": 0.01, "privacy.noise_seed": 0,
    },
    "central": {"privacy.mechanism": "central", "privacy.clipping_norm": 1.0, "privacy.noise_multiplier": 0.0},
    "masked": {"strategy.secure_aggregation": True, "strategy.minimum_replies": 4},
    "MOON": {"strategy.name": "moon", "model.projection_head": True},
    "SCAFFOLD": {"strategy.name": "scaffold", "strategy.spiking": False, "training.momentum": 0.0},
    "detection": {"detection.detectors": ["thresholds", "norm", "hdbscan"]},
}  # fmt: skip


def played(folder: Path, device: str, kind: str, **more: Any) -> snnfl.Run:
    options = {"directory": str(folder), "device": device, "rounds": 2, "overwrite": True}
    return snnfl.run({**SMALL, **KINDS[kind], **more}, run=options, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_federation_learns_the_same(kind: str, tmp_path: Path) -> None:
    runs = (played(tmp_path / device, device, kind) for device in (DEVICE, "cpu"))
    final, expected = ((run.snn() if "model.neuron" in KINDS[kind] else run.ann()).state_dict() for run in runs)
    assert final.keys() == expected.keys()
    worst = max(
        float((final[name] - value).norm() / value.norm().clamp_min(1e-6))
        for name, value in expected.items()
        if value.is_floating_point()
    )
    assert worst < 0.05, "weights after two rounds, relative"


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, Tensor]:
    data = load(DataConfig(source="digits"))
    config = ModelConfig(name="lenet5")
    model = build_model(config, input_shape=data.input_shape, classes=data.classes, generator=generator(0, "weights"))
    images = data.normalise(data.train_images)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for start in range(0, 1280, 64):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(images[start : start + 64]), data.train_labels[start : start + 64]
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return model.eval(), data.normalise(data.test_images[:200])


@pytest.mark.parametrize("more", [{}, {"signed": True, "burst": 3}, {"signed": True, "burst": 2, "two_sided": True}])
def test_a_converted_network_fires_alike_in_every_kernel(trained: Any, more: dict[str, Any], monkeypatch: Any) -> None:
    model, images = trained
    config = ConversionConfig.fast(steps=16, **more)
    on_cpu, on_gpu = convert(model, images[:64], config), convert(model.to(DEVICE), images[:64].to(DEVICE), config)
    model.to("cpu")
    for name, threshold in on_cpu.thresholds.items():
        torch.testing.assert_close(on_gpu.thresholds[name].cpu(), threshold, rtol=0.02, atol=1e-4)
    compiled = on_gpu(images.to(DEVICE))
    kernel = kernels.KERNELS["triton"]
    monkeypatch.setitem(kernels.KERNELS, "triton", replace(kernel, takes=lambda neuron, current: False))
    assert torch.equal(compiled, on_gpu(images.to(DEVICE)))
    moved = on_cpu.to(DEVICE)(images.to(DEVICE))
    assert float((moved.argmax(1).cpu() == on_cpu.to("cpu")(images).argmax(1)).float().mean()) > 0.98


def test_an_audit_finds_the_same(tmp_path: Path) -> None:
    entries = {}
    more = {
        "model.name": "mlp",
        "model.batch_norm": False,
        "data": {"clients": 10, "training_images": 10, "minimum_samples": 1},
    }
    more |= {"training": {"epochs": 1, "batch_size": 1, "momentum": 0.0}, "strategy.fraction_train": 0.2}
    for device in (DEVICE, "cpu"):
        run = played(tmp_path / device, device, "FedAvg", **more, audit={"record": True, "ground_truth": True})
        found = snnfl.audit(run, attacks=["closed_form", "inverting_gradients"], iterations=20, progress=False)
        entries[device] = {entry["attack"]: entry for entry in found.entries}
    assert entries[DEVICE].keys() == entries["cpu"].keys()
    for name, entry in entries["cpu"].items():
        assert entries[DEVICE][name]["verdict"] == entry["verdict"], name
