"""``snnfl export``: a run's network, written for other tools."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import nir
import pytest
import torch

from experiments import cli
from snnfl import plugins
from snnfl.config import compose
from snnfl.data import load as load_data
from snnfl.data import sources
from snnfl.spiking import SpikingNetwork, load, save
from strategies.run_directory import SNN_FILE, read_metrics

DEMO = Path("experiments/conf/demo.yaml").resolve()
SMALL = ["run.rounds=1", "training.epochs=1", "conversion.steps=4", "data.clients=3"]


def snnfl(*arguments: str | Path) -> int:
    """Run the command in this process; return its exit status."""
    handlers = logging.getLogger().handlers[:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["snnfl", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
    logging.getLogger().handlers[:] = handlers
    return int(done.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small S-run."""
    folder = tmp_path_factory.mktemp("runs")
    assert snnfl("run", DEMO, *SMALL, f"run.directory={folder}", "run.name=small") == 0
    return folder / "small"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that is wrong; return the one line that it prints."""
    assert snnfl("export", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("snnfl: ")
    assert err.count("\n") == 1
    return err


def test_a_runs_network_is_loaded_and_is_as_accurate_as_measured(run):
    network, data = load(run / SNN_FILE), load_data(compose(run / "config.yaml").data)
    right = network.simulate(data.normalise(data.test_images), steps=4)[4].argmax(1) == data.test_labels
    assert right.float().mean().item() == pytest.approx(read_metrics(run)[-1]["server_snn_accuracy"], abs=1e-6)


def test_a_run_is_exported_beside_its_network(run, capsys):
    assert snnfl("export", run, "--format", "nir") == 0
    network = load(run / SNN_FILE)
    path = run / "final_snn.nir"
    assert capsys.readouterr().out == f"{path}: {len(network.graph.spikes)} spiking layers, images of shape 1,8,8\n"
    graph = nir.read(path)
    assert graph.nodes["input"].output_type["output"].tolist() == [1, 8, 8]
    neurons = [name for name, node in graph.nodes.items() if isinstance(node, nir.IF)]
    assert sorted(neurons) == sorted(network.thresholds)


def test_a_file_alone_needs_the_shape_of_an_image(run, tmp_path, capsys, monkeypatch):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / SNN_FILE).read_bytes())
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, alone.name)
    assert said.startswith("snnfl: alone.safetensors: no config.yaml of a run beside it; ")
    assert said.endswith("--input-shape 1,28,28\n")
    assert snnfl("export", alone, "--input-shape", "1,8,8", "--output", tmp_path / "here.nir") == 0
    assert nir.read(tmp_path / "here.nir").nodes["output"].output_type["output"].tolist() == [10]


def test_a_mistake_is_one_line(run, tmp_path, capsys):
    absent = tmp_path / "absent"
    assert refused(capsys, absent) == f"snnfl: {absent}: No such file or directory\n"
    assert "strategy.spiking=true" in refused(capsys, tmp_path)
    (tmp_path / "wrong.safetensors").write_bytes(b"wrong")
    assert "wrong.safetensors" in refused(capsys, tmp_path / "wrong.safetensors")
    assert "an ANN, not a spiking network" in refused(capsys, run / "final_ann.safetensors")
    for shape in ("8", "1,8", "1,x,8", "1,8,0", ""):
        assert "8" in refused(capsys, run, "--input-shape", shape)
    assert "No such file" in refused(capsys, run, "--output", tmp_path / "no folder" / "here.nir")
    network = load(run / SNN_FILE)
    drip = SpikingNetwork(network.graph, network.parameters, "drip")
    save(drip, tmp_path / "drip.safetensors")
    alone = [tmp_path / "drip.safetensors", "--input-shape", "1,8,8"]
    assert "steps" in refused(capsys, *alone)
    assert not list(tmp_path.glob("*.nir"))
    assert snnfl("export", *alone, "--steps", "4") == 0


def test_a_runs_network_becomes_a_module_of_spikingjelly(run, tmp_path, capsys):
    assert snnfl("export", run, "--format", "spikingjelly") == 0
    path, network = run / "final_snn.pt", load(run / SNN_FILE)
    assert capsys.readouterr().out == f"{path}: {len(network.graph.spikes)} spiking layers\n"
    module = torch.load(path, weights_only=False)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = torch.stack([module(images) for _ in range(4)]).mean(0)
    torch.testing.assert_close(mean, network(images), rtol=1e-4, atol=1e-4)
    path.unlink()


def test_a_network_is_copied_as_safetensors(run, tmp_path, capsys):
    assert "--output FILE" in refused(capsys, run, "--format", "safetensors")
    copy = tmp_path / "copy.safetensors"
    assert snnfl("export", run, "--format", "safetensors", "--output", copy) == 0
    assert copy.read_bytes() == (run / SNN_FILE).read_bytes()


@pytest.mark.usefixtures("own_registries")
def test_the_data_of_a_plugin_tells_the_shape_of_an_image(tmp_path, capsys):
    plugin = tmp_path / "mine.py"
    lines = ("from snnfl.data.embedded import *", "@register('mine')", "def mine(root): return digits(root)")
    plugin.write_text("\n".join(lines))
    options = ["--plugin", plugin, "data.source=mine", f"run.directory={tmp_path}", "run.name=own"]
    assert snnfl("run", DEMO, *SMALL, *options) == 0
    capsys.readouterr()
    sources.SOURCES.items.pop("mine"), sources.SOURCES.homes.pop("mine")
    plugins._loaded.clear()
    assert refused(capsys, tmp_path / "own").endswith(
        "data.source=mine: it was started with the plug-in mine.py; say --plugin mine.py, in Python "
        "plugins=['mine.py'], or --input-shape 1,28,28\n"
    )
    assert snnfl("export", tmp_path / "own", "--plugin", plugin) == 0
    assert capsys.readouterr().out.endswith("images of shape 1,8,8\n")


@pytest.mark.parametrize(
    ("kind", "library", "requirement"),
    [("nir", "nir", "snnfl[export]"), ("spikingjelly", "spikingjelly.activation_based.neuron", "spikingjelly>=2.0")],
)
def test_a_missing_library_is_one_line(run, tmp_path, capsys, monkeypatch, kind, library, requirement):
    monkeypatch.setitem(sys.modules, library, None)
    line = refused(capsys, run, "--format", kind, "--output", tmp_path / "here")
    assert line.endswith(f"; type: pip install '{requirement}'\n")
    assert not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run that trains a spiking network."""
    folder = tmp_path_factory.mktemp("runs")
    options = ["strategy.spiking=false", "model.neuron=lif", "model.time_steps=4", f"run.directory={folder}"]
    assert snnfl("run", DEMO, *SMALL, *options, "run.name=trained") == 0
    return folder / "trained"


def test_a_network_that_was_trained_as_a_spiking_one_is_exported(trained, tmp_path, capsys):
    capsys.readouterr()
    assert snnfl("export", trained) == 0
    path = trained / "final_snn.nir"
    assert capsys.readouterr().out == f"{path}: 4 spiking layers, samples of shape 1,8,8\n"
    neurons = [node for node in nir.read(path).nodes.values() if isinstance(node, nir.LIF)]
    assert len(neurons) == 4
    assert "--output FILE" in refused(capsys, trained, "--format", "safetensors")
    assert snnfl("export", trained, "--format", "safetensors", "--output", tmp_path / "copy.safetensors") == 0
    assert (tmp_path / "copy.safetensors").read_bytes() == (trained / SNN_FILE).read_bytes()
    capsys.readouterr()
    assert "only converted networks" in refused(capsys, trained, "--format", "spikingjelly")
    assert "load_run" in refused(capsys, trained / SNN_FILE, "--output", tmp_path / "alone.nir")
