"""Options for few steps as a user meets them: the search, the preset, warnings, files, exports, counts."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import networks
import pytest
import stepwise
import torch

import snnfl
from snnfl.config import ConfigError, ConversionSearch
from snnfl.conversion import ConversionConfig, ConversionWarning, convert
from snnfl.conversion.search import choose
from snnfl.metrics.energy import count_spikes
from snnfl.spiking import ExportError, NetworkFileError, SpikingNetwork, load, save, to_nir, to_spikingjelly
from snnfl.spiking import storage as storage_module

OPTIONS = [
    {"signed": True, "burst": 2},
    {"signed": True, "burst": 3, "two_sided": True, "correction": "residual"},
    {"correction": "offset", "correction_steps": 3},
]


def made(network: type = networks.Gated, **options: object) -> SpikingNetwork:
    return convert(networks.trained(network), networks.images(8), ConversionConfig.fast(**{"steps": 6, **options}))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("network", [networks.Gated, networks.Residual])
def test_steps_recordings_and_files_are_the_simulation(network, options, tmp_path):
    spiking, images = made(network, readout="second_half", **options), networks.images(5, seed=3)
    expected = spiking(images)
    torch.testing.assert_close(expected, stepwise.logits(spiking, images, 6)[6], rtol=1e-9, atol=1e-11)
    state, outputs = spiking.start(images), []
    for _ in range(6):
        state, step = spiking.step(state, images)
        outputs.append(step.output)
    torch.testing.assert_close(torch.stack(outputs[3:]).mean(0), expected)
    recording = spiking.record(images)
    assert torch.equal(recording.logits, expected)
    if spiking.signed:
        assert any(bool((spikes < 0).any()) for spikes in recording.spikes.values())
        assert max(int(spikes.max()) for spikes in recording.spikes.values()) > 1
    save(spiking, tmp_path / "network")
    assert torch.equal(load(tmp_path / "network")(images), expected)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"burst": 17}, "burst=17 is no number"),
        ({"burst": True}, "burst=True is no number"),
        ({"correction_steps": 0}, "correction_steps=0 is no number"),
        ({"signed": 1}, "signed=1 is neither true nor false"),
        ({"correction": "other"}, "correction='other'; known: none, residual, offset"),
    ],
)
def test_options_of_a_hostile_file_are_refused(about, message, tmp_path, monkeypatch):
    written = storage_module.write_arrays
    monkeypatch.setattr(storage_module, "write_arrays", lambda path, arrays, all_: written(path, arrays, all_ | about))
    save(made(), tmp_path / "network")
    with pytest.raises(NetworkFileError, match=message):
        load(tmp_path / "network")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_spike_and_every_step_costs(options):
    """Spikes that are taken back and steps before the simulation are counted, against recordings."""
    spiking, images = made(networks.Residual, **options), networks.images(5, seed=3)
    count, length = count_spikes(spiking, images, steps=6), spiking.rehearsal(6)
    assert count.steps == 6 + length
    recordings = [spiking.record(images)]
    if length:
        recordings.append(replace(spiking, correction="none", correction_steps=None).record(images, steps=length))
    for row in count.layers:
        if row.neurons:
            expected = sum(float(each.spikes[row.layer].double().abs().sum()) for each in recordings) / 5
            assert row.spikes == pytest.approx(expected)
            assert row.rate == pytest.approx(expected / row.neurons / count.steps)


@pytest.mark.parametrize(
    "options", [{"signed": True}, {"signed": False, "burst": 2}, {"correction": "offset"}], ids=str
)
def test_exports_refuse_what_they_cannot_express(options, tmp_path: Path):
    spiking = made(networks.Plain, steps=32, **options)
    for export in (lambda: to_spikingjelly(spiking), lambda: to_nir(spiking, [2, 6, 6], tmp_path / "x")):
        with pytest.raises(ExportError, match="convert without it"):
            export()


def test_the_preset_goes_by_the_steps():
    few, many = ConversionConfig.fast(31), ConversionConfig.fast(32)
    assert (few.signed, few.burst, few.readout) == (True, 2, "all")
    assert (many.signed, many.burst, many.readout) == (False, 1, "second_half")


def test_a_search_takes_the_way_that_is_nearest_to_the_ann():
    model, images = networks.trained(networks.Residual), networks.images(20)
    search = ConversionConfig.search(steps=4, tries=7, calibration="none")
    chosen, scores = choose(search.candidates, lambda part, config: convert(model, part, config), images)
    reference = model(images[1::2]).detach().softmax(1)
    by_hand = []
    for config in search.candidates:
        found = convert(model, images[::2], config)(images[1::2]).softmax(1)
        by_hand.append(float((reference * (reference / found).log()).sum(1).mean()))
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(by_hand), rtol=1e-4, atol=1e-6)
    assert chosen == search.candidates[by_hand.index(min(by_hand))]
    assert len(set(scores)) > 3
    assert torch.equal(snnfl.convert(model, images, search)(images), convert(model, images, chosen)(images))


def test_a_search_has_a_budget_and_says_its_steps():
    assert len(ConversionConfig.search(tries=2).candidates) == 2
    assert {config.correction for config in ConversionConfig.search(tries=99).candidates} == {"none"}
    assert "offset" in {config.correction for config in ConversionConfig.search(rehearse=True).candidates}
    with pytest.raises(ConfigError, match="tries=0"):
        ConversionConfig.search(tries=0)
    with pytest.raises(ValueError, match="1 calibration image"):
        convert(networks.trained(networks.Plain), networks.images(1), ConversionConfig.search())
    assert isinstance(ConversionConfig.search(), ConversionSearch)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_images_are_a_warning(value):
    with pytest.warns(ConversionWarning, match=f"hold one number alone, {value:g}"):
        convert(networks.trained(networks.Plain), torch.full_like(networks.images(4), value), ConversionConfig())
    with pytest.warns(ConversionWarning, match="are 4 times the same"):
        convert(networks.trained(networks.Plain), networks.images(1).expand(4, -1, -1, -1), ConversionConfig())


@pytest.mark.parametrize("signed", [False, True])
def test_a_layer_that_never_spikes_is_named(signed):
    model = networks.trained(networks.Plain)
    with torch.no_grad():
        model.hidden.weight.zero_()
        model.hidden.bias.fill_(-1.0)
    with pytest.warns(ConversionWarning, match="relu_hidden: no neuron fires in 6 time steps"):
        convert(model, networks.images(4), ConversionConfig(steps=6, signed=signed))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConversionWarning)
        made(networks.Plain)
