"""``snnfl export``: a spiking network as a file for other tools."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from experiments.arguments import PluginOption
from snnfl.config import ConfigError, counted, spikes_natively

SUFFIXES = {"nir": ".nir", "spikingjelly": ".pt", "safetensors": ".safetensors"}


def export(
    source: Annotated[Path, typer.Argument(help="a run's folder, or a file of a spiking network", metavar="RUN|FILE")],
    kind: Annotated[
        Literal["nir", "spikingjelly", "safetensors"], typer.Option("--format", help="what to write")
    ] = "nir",
    output: Annotated[
        Path | None, typer.Option(help="file to write; default: beside the network's", metavar="FILE")
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="nir: shape of an image, such as 1,28,28; default: that of the run's data")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="nir: length of the simulation, for a drip depends on it; default: the network's"),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Write a run's spiking network for other tools.

    \b
    nir           for neuromorphic hardware and simulators that read NIR; needs pip install 'snnfl[export]'
    spikingjelly  a PyTorch module of spikingjelly's neurons; torch.load(FILE, weights_only=False) reads it where
                  spikingjelly and snnfl are installed; needs pip install 'spikingjelly>=2.0'
    safetensors   weights, thresholds and structure; snnfl.spiking.load(FILE) reads it

    \b
    snnfl export runs/demo --format nir
    snnfl export runs/demo --format spikingjelly --output network.pt
    snnfl export network.safetensors --format nir --input-shape 1,28,28
    """  # noqa: D301  (\b keeps typer from joining the lines)
    from snnfl.files import write_bytes
    from snnfl.plugins import load_installed, load_listed
    from snnfl.spiking import load, save, to_nir, to_spikingjelly
    from strategies.run_directory import CONFIG_FILE, SNN_FILE, read_config

    load_installed()
    load_listed(plugin or [], None)
    path = source / SNN_FILE if source.is_dir() else source
    if source.is_dir() and not path.exists():
        raise ConfigError(
            f"{source}: no {SNN_FILE}; only a finished run leaves one, with strategy.spiking=true, or of networks that "
            "are trained as spiking ones (model.neuron)"
        )
    native = source.is_dir() and (source / CONFIG_FILE).exists() and spikes_natively(read_config(source))
    network = None if native else load(path)
    target = output or path.with_suffix(SUFFIXES[kind])
    if target.resolve() == path.resolve():
        raise ConfigError(f"{target} is what is exported; say another file: --output FILE")
    if network is None:
        typer.echo(f"{target}: {_export_trained(source, path, kind, target)}")
        return
    about = ""
    if kind == "nir":
        shape = _image_shape(path, input_shape)
        if steps is None and network.steps is None and (path.parent / CONFIG_FILE).exists():
            steps = read_config(path.parent).conversion.steps
        about = f", images of shape {','.join(map(str, shape))}"
        _write(target, lambda: to_nir(network, shape, target, steps=steps))
    elif kind == "spikingjelly":
        import torch

        content = io.BytesIO()
        torch.save(to_spikingjelly(network), content)
        _write(target, lambda: write_bytes(target, content.getvalue()))
    else:
        _write(target, lambda: save(network, target))
    typer.echo(f"{target}: {counted(len(network.graph.spikes), 'spiking layer')}{about}")


def _export_trained(folder: Path, path: Path, kind: str, target: Path) -> str:
    """Write the network of a run that trains a spiking one; say what was written."""
    from snnfl.api import load_run
    from snnfl.conversion import fold
    from snnfl.files import write_bytes
    from snnfl.models import SpikingModel
    from snnfl.spiking import trained_to_nir
    from snnfl.training import exchangeable
    from snnfl.workspace import Workspace

    if kind == "spikingjelly":
        raise ConfigError(
            "--format spikingjelly: only converted networks are written as its modules; of this one write nir, or take "
            f"snnfl.load_run({str(folder)!r}).snn(), which is a PyTorch module"
        )
    if kind == "safetensors":
        _write(target, lambda: write_bytes(target, path.read_bytes()))
        return "weights, which snnfl run reads as model.weights"
    run = load_run(folder)
    model, work = run.snn(), Workspace(run.config)
    if not isinstance(model, SpikingModel) or (structure := work.structure) is None:
        raise ConfigError(f"{folder}: model.name={run.config.model.name} doesn't trace, so it has no graph to write")
    if model.readout.fires and model.readout.kind != "rate":
        raise ConfigError(f"model.readout={model.readout.kind}: NIR has no neuron that fires and tells its potential")
    shape = model.input_shape[1:] if model.sequence else model.input_shape
    readout = model.readout.neurons.neuron if model.readout.fires else None
    neurons = {name: layer.neuron for name, layer in model.neurons.items()}
    parameters = fold(structure.graph, exchangeable(model))
    _write(target, lambda: trained_to_nir(structure.graph, parameters, neurons, shape, target, readout=readout))
    return f"{counted(len(neurons), 'spiking layer')}, samples of shape {','.join(map(str, shape))}"


def _write(target: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror})") from None


def _image_shape(file: Path, given: str | None) -> tuple[int, ...]:
    """Read the shape of an image from the command line, else take that of the data set of the run beside a file."""
    from snnfl import data
    from snnfl.plugins import check_same, loaded
    from strategies.run_directory import CONFIG_FILE, read_config, read_environment

    if given is not None:
        sizes = given.split(",")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise ConfigError(f"--input-shape={given}: expected whole numbers, such as 1,28,28")
        return tuple(map(int, sizes))
    folder = file.parent
    if not (folder / CONFIG_FILE).exists():
        reason = f"no {CONFIG_FILE} of a run beside it; say the shape of an image: --input-shape 1,28,28"
        raise ConfigError(f"{file}: {reason}")
    config = read_config(folder)
    missing = check_same(read_environment(folder).get("plugins"), loaded(), versions=False)
    if missing is not None and config.data.source not in data.sources.names():
        raise ConfigError(f"{folder}: data.source={config.data.source}: {missing}, or --input-shape 1,28,28")
    return data.load(config.data).input_shape
