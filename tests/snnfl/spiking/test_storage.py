from __future__ import annotations

import copy
import json
import math
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutate, read_if_whole
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from snnfl.conversion import ConversionConfig, convert
from snnfl.files import write_bytes
from snnfl.spiking import Affine, LinearMap, Spike, SpikingGraph, SpikingNetwork, graph_json, load, save
from snnfl.spiking.graph import AFFINE_OPS, LINEAR_OPS, MAX_OPS, MaxPool
from snnfl.spiking.storage import NetworkFileError, write_arrays

NETWORKS = [networks.Plain, networks.Residual, networks.Joined]


def converted(kind: type = networks.Plain, dtype: torch.dtype = torch.float32, **options: Any) -> SpikingNetwork:
    return convert(
        networks.trained(kind, dtype=dtype), networks.images(8, dtype=dtype), ConversionConfig(steps=16, **options)
    )


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"thresholds": "channel_mmse", "initial_potential": "half"},
        {"calibration": "bias_potential"},
        {"readout": "second_half"},
    ],
    ids=["layer", "channel", "potential", "late"],
)
def test_a_loaded_network_simulates_bit_for_bit(kind, dtype, channels_last, options, tmp_path):
    network, images = converted(kind, dtype, **options), networks.images(5, seed=3, dtype=dtype)
    if channels_last:
        last = {
            name: a.to(memory_format=torch.channels_last) if a.dim() == 4 else a
            for name, a in network.parameters.items()
        }
        network = replace(network, parameters=last)
    save(network, tmp_path / "network.safetensors")
    loaded = load(tmp_path / "network.safetensors")
    assert loaded.graph == network.graph
    assert (loaded.initial_potential, loaded.readout) == (network.initial_potential, network.readout)
    assert loaded.steps == network.steps == 16
    assert loaded.parameters.keys() == network.parameters.keys()
    assert all(torch.equal(array, network.parameters[name]) for name, array in loaded.parameters.items())
    expected, found = (each.simulate(images, steps=16, curve=(3,)) for each in (network, loaded))
    assert all(torch.equal(found[steps], expected[steps]) for steps in (3, 16))
    assert torch.equal(loaded.analog(images), network.analog(images))


def test_biases_in_time_are_kept(tmp_path):
    network, images = converted(calibration="time_bias"), networks.images(4, dtype=torch.float32)
    assert "relu.time_bias" in network.parameters
    save(network, tmp_path / "network.safetensors")
    loaded = load(tmp_path / "network.safetensors")
    assert torch.equal(loaded.simulate(images, steps=16)[16], network.simulate(images, steps=16)[16])


def example_nodes() -> dict[str, Affine | LinearMap | MaxPool]:
    """A node for each operation, with numbers, tuples and lists among its arguments."""
    window = {"kernel_size": 2, "stride": (2,), "padding": 0, "ceil_mode": True}
    arguments: dict[str, dict[str, Any]] = {
        "conv1d": {"stride": (1,), "padding": "same", "dilation": (1,), "groups": 1},
        "conv2d": {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 2},
        "avg_pool1d": {**window, "count_include_pad": False},
        "avg_pool2d": {**window, "count_include_pad": True},
        "max_pool1d": {**window, "dilation": 1},
        "max_pool2d": {**window, "dilation": (1, 2)},
        "adaptive_avg_pool1d": {"output_size": 1},
        "adaptive_avg_pool2d": {"output_size": (None, 2)},
        "adaptive_max_pool1d": {"output_size": (3,)},
        "adaptive_max_pool2d": {"output_size": 3},
        "concatenate": {"dim": 1},
        "flatten": {"start_dim": 1},
        "mean": {"dim": [2, -1], "keepdim": True},
        "reshape": {"shape": [-1, 4]},
        "conv_transpose1d": {"stride": (2,), "padding": (0,), "output_padding": (1,), "groups": 1, "dilation": (1,)},
        "conv_transpose2d": {
            "stride": (2, 1),
            "padding": (1, 0),
            "output_padding": (1, 0),
            "groups": 2,
            "dilation": (1, 1),
        },
        "add": {"alpha": -0.5},
        "multiply": {"by": 2.0},
        "shift": {"by": -1.0},
        "interpolate": {"scale_factor": (2.0, 1.5), "mode": "bilinear", "align_corners": True},
        "pad": {"pad": [1, -1, 0, 2], "mode": "constant", "value": 0.5},
        "permute": {"dims": [0, 2, 1]},
        "slice": {"index": [[1, None, 2], -1, [None, 3, None]]},
        "squeeze": {"dim": [-1, 2]},
        "unsqueeze": {"dim": -1},
        "pixel_shuffle": {"upscale_factor": 2},
        "pixel_unshuffle": {"downscale_factor": 2},
        "channel_shuffle": {"groups": 2},
    }
    kinds = [(Affine, AFFINE_OPS), (LinearMap, LINEAR_OPS), (MaxPool, MAX_OPS)]
    reads = {"add": ("relu", "input")}
    return {
        op: kind(name=f"a {op}", inputs=reads.get(op, ("relu",)), op=op, arguments=arguments.get(op, {}))
        for kind, operations in kinds
        for op in operations
    }


@pytest.mark.parametrize(("op", "node"), example_nodes().items())
def test_every_operation_survives_json_with_its_types(op, node):
    end = Spike(name="end", inputs=(node.name,), ceiling=6.0)
    graph = SpikingGraph((Spike(name="relu", inputs=("input",)), node, end))
    written = json.loads(json.dumps(graph_json.encode_graph(graph)))
    found = graph_json.decode_graph(written)
    assert found == graph
    assert found.by_name[f"a {op}"].arguments == node.arguments  # where [1] != (1,), unlike in JSON
    assert {key: type(value) for key, value in found.nodes[1].arguments.items()} == {
        key: type(value) for key, value in node.arguments.items()
    }


def test_equal_networks_give_equal_files(tmp_path):
    network = converted(networks.Residual)
    again = converted(networks.Residual)
    reordered = replace(again, parameters=dict(reversed(list(again.parameters.items()))))
    for number, each in enumerate((network, again, reordered)):
        save(each, tmp_path / f"{number}.safetensors")
    first, *others = [(tmp_path / f"{number}.safetensors").read_bytes() for number in range(3)]
    assert others == [first, first]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}.safetensors" for number in range(3)]


def test_others_read_the_arrays_under_their_names(tmp_path):
    network = converted()
    save(network, tmp_path / "network.safetensors")
    arrays = load_file(tmp_path / "network.safetensors")
    assert arrays.keys() == network.parameters.keys()
    with safe_open(tmp_path / "network.safetensors", framework="pt") as file:
        assert list(file.metadata()) == ["snnfl"]
        about = json.loads(file.metadata()["snnfl"])
    assert (about["schema"], about["kind"], about["initial_potential"]) == (1, "snn", "zero")


def test_a_threshold_may_be_shared_and_surplus_arrays_stay_behind(tmp_path):
    network, one = converted(), torch.ones(1)
    shared = {name: one if name.endswith("threshold") else array for name, array in network.parameters.items()}
    save(replace(network, parameters={**shared, "norm.gamma": torch.ones(4)}), tmp_path / "network.safetensors")
    assert load(tmp_path / "network.safetensors").parameters.keys() == network.parameters.keys()


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "network.safetensors"
    save(converted(), path)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            save(converted(networks.Residual), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def parts(network: SpikingNetwork) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says about a network, and its arrays."""
    graph = graph_json.encode_graph(network.graph)
    about = {"schema": 1, "kind": "snn", "initial_potential": "zero", "channels_last": [], "graph": graph}
    return json.loads(json.dumps(about)), dict(network.parameters)


def node(about: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in about["graph"]["nodes"] if each["name"] == name)


Change = Callable[[dict[str, Any], dict[str, Tensor]], object]

HOSTILE: list[tuple[str, Change]] = [
    ("schema 2", lambda about, arrays: about.update(schema=2)),
    ("schema None", lambda about, arrays: about.pop("schema")),
    ("an ANN, not a spiking network", lambda about, arrays: about.update(kind="ann")),
    ("initial_potential='full'", lambda about, arrays: about.update(initial_potential="full")),
    ("steps=0", lambda about, arrays: about.update(steps=0)),
    ("steps=True", lambda about, arrays: about.update(steps=True)),
    ("channels_last=None", lambda about, arrays: about.update(channels_last=None)),
    ("graph=None", lambda about, arrays: about.update(graph=None)),
    ("no spiking layer", lambda about, arrays: about["graph"].update(nodes=[])),
    ("'os.system'", lambda about, arrays: node(about, "pool").update(op="os.system")),
    ("unknown operation 'conv2d'", lambda about, arrays: node(about, "pool").update(op="conv2d")),
    ("no node of a spiking graph", lambda about, arrays: node(about, "pool").update(kind="module")),
    ("no node of a spiking graph", lambda about, arrays: node(about, "pool").update(kind=["affine"])),
    ("'hook'", lambda about, arrays: node(about, "conv").update(hook="x")),
    ("'conv' has the fields", lambda about, arrays: node(about, "conv").pop("has_bias")),
    ("'weight'", lambda about, arrays: node(about, "conv")["arguments"].update(weight=1)),
    ("'groups'=True", lambda about, arrays: node(about, "conv")["arguments"].update(groups=True)),
    ("'stride'=0", lambda about, arrays: node(about, "conv")["arguments"].update(stride=0)),
    ("'padding'='reflect'", lambda about, arrays: node(about, "conv")["arguments"].update(padding="reflect")),
    ("'ceil_mode'=1", lambda about, arrays: node(about, "pool")["arguments"].update(ceil_mode=1)),
    ("needs kernel_size", lambda about, arrays: node(about, "pool")["arguments"].pop("kernel_size")),
    *(
        (f"needs {key}", lambda about, arrays, key=key: node(about, "conv")["arguments"].pop(key))
        for key in ("stride", "padding", "dilation", "groups")
    ),
    ("'stride'=1", lambda about, arrays: node(about, "conv")["arguments"].update(stride=1)),
    ("'stride'=[1, 1]", lambda about, arrays: node(about, "conv")["arguments"].update(stride=[1, 1])),
    ("'dilation'=(1,)", lambda about, arrays: node(about, "conv")["arguments"].update(dilation={"tuple": [1]})),
    ("'padding'=(1, 1, 1)", lambda about, arrays: node(about, "conv")["arguments"].update(padding={"tuple": [1] * 3})),
    ("padding='same'", lambda about, arrays: node(about, "conv")["arguments"].update(
        padding="same", stride={"tuple": [2, 1]})),
    ("'kernel_size'=(2, 2, 2)", lambda about, arrays: node(about, "pool")["arguments"].update(
        kernel_size={"tuple": [2, 2, 2]})),
    ("half of a window", lambda about, arrays: node(about, "pool")["arguments"].update(padding=2)),
    ("image_shape=[0, 6]", lambda about, arrays: about["graph"].update(image_shape=[0, 6])),
    ("image_shape='x'", lambda about, arrays: about["graph"].update(image_shape="x")),
    ("'start_dim'=0", lambda about, arrays: node(about, "flatten")["arguments"].update(start_dim=0)),
    ("epsilon=nan", lambda about, arrays: node(about, "conv").update(epsilon=float("nan"))),
    ("ceiling=-1", lambda about, arrays: node(about, "relu").update(ceiling=-1)),
    ("reads 'head'", lambda about, arrays: node(about, "conv").update(inputs=["head"])),
    ("reads 'conv'", lambda about, arrays: node(about, "conv").update(inputs=["conv"])),
    ("reads 'nobody'", lambda about, arrays: node(about, "pool").update(inputs=["nobody"])),
    ("reads 2 values", lambda about, arrays: node(about, "relu").update(inputs=["conv", "conv"])),
    ("reads 0 values", lambda about, arrays: node(about, "relu").update(inputs=[])),
    ("'conv' stands twice", lambda about, arrays: node(about, "relu").update(name="conv")),
    ("'input' stands twice", lambda about, arrays: node(about, "conv").update(name="input")),
    ("lacks array 'conv.bias'", lambda about, arrays: arrays.pop("conv.bias")),
    ("surplus array 'more'", lambda about, arrays: arrays.update(more=torch.ones(1))),
    ("surplus array 'pool.threshold'", lambda about, arrays: arrays.update({"pool.threshold": torch.ones(1)})),
    ("weight of 'conv'", lambda about, arrays: arrays.update({"conv.weight": torch.ones(4, 2)})),
    ("weight of 'conv'", lambda about, arrays: node(about, "conv")["arguments"].update(groups=3)),
    ("bias of 'conv'", lambda about, arrays: arrays.update({"conv.bias": torch.ones(3)})),
    ("its input has 8 channels", lambda about, arrays: arrays.update({"head.weight": torch.ones(3, 9)})),
    ("threshold of 'relu'", lambda about, arrays: arrays.update({"relu.threshold": torch.ones(3)})),
    ("threshold of 'relu'", lambda about, arrays: arrays.update({"relu.threshold": torch.ones(())})),
    ("threshold of 'relu'", lambda about, arrays: arrays.update({"relu.threshold": torch.ones(0)})),
    ("potential of 'relu'", lambda about, arrays: arrays.update({"relu.potential": torch.ones(3)})),
    ("time_bias of 'relu'", lambda about, arrays: arrays.update({"relu.time_bias": torch.ones(4)})),
    ("I64", lambda about, arrays: arrays.update({"relu.threshold": torch.ones(1, dtype=torch.int64)})),
    ("F32, F64", lambda about, arrays: arrays.update({"conv.bias": torch.ones(4, dtype=torch.float64)})),
    ("not positive", lambda about, arrays: arrays.update({"relu.threshold": torch.zeros(1)})),
    ("not positive", lambda about, arrays: arrays.update({"relu.threshold": torch.tensor([1.0, 1.0, -1.0, 1.0])})),
    ("'relu.threshold' holds NaN", lambda about, arrays: arrays.update({"relu.threshold": torch.tensor([math.nan])})),
    ("'relu.threshold' holds NaN", lambda about, arrays: arrays.update({"relu.threshold": torch.tensor([math.inf])})),
    ("'conv.weight' holds NaN", lambda about, arrays: arrays["conv.weight"].view(-1)[5:6].fill_(math.nan)),
    ("'conv.bias' holds NaN", lambda about, arrays: arrays.update({"conv.bias": torch.full((4,), -math.inf)})),
    ("'relu.potential' holds NaN", lambda about, arrays: arrays.update({"relu.potential": torch.full((4,), math.nan)})),
    ("'relu.time_bias' holds", lambda about, arrays: arrays.update({"relu.time_bias": torch.full((9, 4), math.nan)})),
]  # fmt: skip


def refused(path: Path) -> str:
    """Load a file that isn't valid; return the message, which is one line that begins with the file's name."""
    with pytest.raises(NetworkFileError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("words", "change"), HOSTILE)
def test_what_is_wrong_with_a_file_is_named(words, change, tmp_path):
    about, arrays = parts(converted())
    write_arrays(tmp_path / "network.safetensors", arrays, about)
    load(tmp_path / "network.safetensors")
    change(about, arrays)
    write_arrays(tmp_path / "network.safetensors", arrays, about)
    assert words in refused(tmp_path / "network.safetensors")


def test_additions_must_fit(tmp_path):
    about, arrays = parts(converted(networks.Residual))
    arrays |= {"project.0.weight": torch.ones(5, 4, 1, 1), "project.0.bias": torch.ones(5)}
    write_arrays(tmp_path / "network.safetensors", arrays, about)
    assert "adds values of 6 and 5 channels" in refused(tmp_path / "network.safetensors")


def test_a_network_of_one_size_says_so(tmp_path):
    network, images = converted(), networks.images(2, dtype=torch.float32)
    bound = replace(network, graph=replace(network.graph, image_shape=(2, 6, 6)))
    save(bound, tmp_path / "network.safetensors")
    loaded = load(tmp_path / "network.safetensors")
    assert loaded.graph == bound.graph
    assert torch.equal(loaded.simulate(images, steps=4)[4], network.simulate(images, steps=4)[4])
    with pytest.raises(ValueError, match=r"do not fit the model: it was traced for images of shape \[2, 6, 6\]"):
        loaded.simulate(images[..., :5], steps=4)
    with pytest.raises(ValueError, match="was traced for"):
        loaded.analog(images[..., :5])


def test_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "network.safetensors"
    assert "No such file" in refused(path)
    assert refused(tmp_path)
    contents = {
        b"": "",
        b"not safetensors at all": "",
        pickle.dumps({"pickle": "runs code"}): "",
        struct.pack("<Q", 2**40) + b"{}": "",
        to_bytes({"a": torch.ones(1)}): "metadata lack 'snnfl'",
        to_bytes({"a": torch.ones(1)}, {"snnfl": "{"}): "not JSON",
        to_bytes({"a": torch.ones(1)}, {"snnfl": "[" * 100_000}): "not JSON",
        to_bytes({"a": torch.ones(1)}, {"snnfl": "1" * 10_000}): "not JSON",
        to_bytes({"a": torch.ones(1)}, {"snnfl": "[1]"}): "schema [1]",
    }
    for content, words in contents.items():
        write_bytes(path, content)
        assert words in refused(path)
    save(converted(), path)
    whole = path.read_bytes()
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path)


@cache
def parts_of(kind: type) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a file's description and arrays; when it is asked for, since all workers collect these tests."""
    return parts(converted(kind))


@settings(max_examples=200)
@given(data=st.data())
def test_a_mutated_description_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    about, arrays = parts_of(data.draw(st.sampled_from([networks.Residual, networks.Gated])))
    about = mutate(copy.deepcopy(about), data)
    write_bytes(path, to_bytes(arrays, {"snnfl": json.dumps(about)}))
    read_or_refused(path)


@given(data=st.data())
def test_mutated_arrays_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    about, arrays = parts_of(networks.Residual)
    name = data.draw(st.sampled_from(sorted(arrays)))
    shape = data.draw(st.lists(st.integers(0, 6), max_size=5))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.int8, torch.bool, torch.complex64]))
    fill = data.draw(st.sampled_from([1.0, 0.0, -1.0, float("nan")]))
    write_arrays(path, {**arrays, name: torch.full(shape, 1.0).mul(fill).to(dtype)}, about)
    read_or_refused(path)


@given(data=st.data())
def test_mutated_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    about, arrays = parts_of(networks.Residual)
    write_arrays(path, arrays, about)
    content = bytearray(path.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    write_bytes(path, bytes(content[: data.draw(st.sampled_from([len(content), header, header // 2]))]))
    read_or_refused(path)


def failure(run: Callable[[], object]) -> str | None:
    """Return why something cannot be computed, as a file cannot tell which images its network fits."""
    try:
        run()
    except ValueError as error:
        return str(error)
    return None


def read_or_refused(path: Path) -> None:
    """Nothing but a :class:`NetworkFileError` may come of it; what is read simulates, or says what doesn't fit."""
    if (network := read_if_whole(load, path)) is not None:
        assert all(bool((level > 0).all()) for level in network.thresholds.values())
        assert all(f"{each.name}.weight" in network.parameters for each in network.graph.affines)
        dtype = next(iter(network.parameters.values())).dtype
        message = failure(lambda: network.simulate(networks.images(2, dtype=dtype), steps=3))
        assert message is None or re.match(r"images of shape .* do not fit the model: .*$|steps=3: ", message), message
