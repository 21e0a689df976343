"""What a network is asked: the same of every sample, in evaluation mode, in one forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snnfl import rng
from snnfl.config import ConversionConfig, ModelConfig
from snnfl.conversion import convert
from snnfl.membership_attacks.signals import REPETITIONS, measure
from snnfl.models import SpikingModel, build_model

STEPS = 5


def network(**options: object) -> SpikingModel:
    config = ModelConfig(name="lenet5", neuron="lif", time_steps=STEPS, **options)  # type: ignore[arg-type]
    draw = rng.generator(0, "weights")
    made = build_model(config, input_shape=(1, 28, 28), classes=10, generator=draw)
    assert isinstance(made, SpikingModel)
    return made


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return 3 * torch.randn(12, 1, 28, 28, generator=rng.generator(0, "inputs"))


@pytest.mark.parametrize("readout", ["rate", "final_potential", "mean_potential", "max_potential"])
@pytest.mark.parametrize("fires", [False, True])
def test_logits_and_last_potentials_are_the_networks(readout: str, fires: bool, inputs: Tensor) -> None:
    options: dict[str, object] = (
        {"readout": readout} if readout == "rate" else {"readout": readout, "output_fires": fires}
    )
    model = network(**options).eval()
    found = measure(model, inputs)
    with torch.no_grad():
        potentials = model.readout.neurons.over_time(model.currents(inputs)).potentials
        assert torch.allclose(found.logits, model(inputs), atol=1e-5)
    assert found.potentials is not None
    assert torch.allclose(found.potentials, potentials[-1], atol=1e-4)


def test_counts_and_timing_are_those_of_recorded_spikes(inputs: Tensor) -> None:
    model = network().eval()
    found, recorded = measure(model, inputs, white_box=True, batch=5), model.record(inputs)
    assert found.counts is not None
    assert found.timing is not None
    total = sum(float(layer.spikes.sum()) for layer in recorded.values())
    assert total > 0
    assert float(found.counts.sum()) == pytest.approx(total)
    sizes = [layer.spikes.shape[2] for layer in recorded.values()]
    assert found.counts.shape == (len(inputs), sum(sizes))
    assert found.timing.shape == (len(inputs), STEPS * len(recorded))
    first = next(iter(recorded.values())).spikes
    assert torch.allclose(found.timing[:, :STEPS], first.flatten(2).mean(2).T)


def test_a_sample_is_answered_alike_in_any_company(inputs: Tensor) -> None:
    """In training mode batch normalisation would tell samples of each other."""
    model = network().train()
    together, alone = measure(model, inputs), measure(model, inputs[3:4])
    assert torch.allclose(together.logits[3], alone.logits[0], atol=1e-5)
    assert all(module.training for module in model.modules())


def test_altered_samples_are_the_same_for_every_network(inputs: Tensor) -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.flatten(1)[:, :10]

    found = [measure(Watching(), inputs, perturbed=True) for _ in range(2)]
    assert found[0].perturbed is not None
    assert found[1].perturbed is not None
    assert found[0].perturbed.shape == (REPETITIONS, len(inputs), 10)
    assert torch.equal(found[0].perturbed, found[1].perturbed)
    blanked = torch.stack([(each == 0).float().mean() for each in seen[1 : 1 + REPETITIONS]])
    assert blanked.mean() == pytest.approx(0.2, abs=0.02)
    assert not torch.equal(seen[1], seen[2])


def test_an_ordinary_network_has_logits_alone(inputs: Tensor) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    found = measure(plain, inputs, white_box=True)
    assert found.potentials is None
    assert found.counts is None
    assert found.timing is None


def test_a_converted_network_is_asked_as_it_answers_and_its_spikes_are_seen(inputs: Tensor) -> None:
    model = build_model(
        ModelConfig(name="lenet5"), input_shape=(1, 28, 28), classes=10, generator=rng.generator(0, "w")
    )
    spiking = convert(model, inputs, ConversionConfig(steps=STEPS))
    found, recorded = measure(spiking, inputs, white_box=True, batch=5), spiking.record(inputs)
    torch.testing.assert_close(found.logits, spiking(inputs))
    assert found.potentials is not None
    assert torch.equal(found.potentials, found.logits)
    assert found.counts is not None
    assert float(found.counts.sum()) == sum(float(spikes.sum()) for spikes in recorded.spikes.values())
    assert measure(model.eval(), inputs).potentials is None
