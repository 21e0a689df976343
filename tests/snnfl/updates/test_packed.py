"""Quantised uploads of every kind of update, as the server reads them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnfl.config import compose
from snnfl.training import is_statistic
from snnfl.updates import CODES, SCALES, Packing
from snnfl.workspace import Workspace

NATIVE = ["model.neuron=rlif", "model.time_steps=2", "model.learn_beta=true", "model.learn_threshold=true"]
KINDS = {
    "plain": ["strategy.spiking=false"],
    "plain, learned ranges": ["strategy.spiking=false", "quantization.activations=4"],
    "fedbn": ["strategy.spiking=false", "strategy.name=fedbn"],
    "native": ["strategy.spiking=false", *NATIVE],
    "converted": [],
    "converted, biases back": ["strategy.bias_back=true", "model.conv_bias=true"],
    "converted residual network": ["model.name=resnet20", "conversion.candidates=3"],
}


def work_of(kind: str, bits: int = 4) -> Workspace:
    options = ["data.clients=4", "conversion.steps=4", f"quantization.uploads={bits}", *KINDS[kind]]
    return Workspace(compose(None, options))


def packing_of(work: Workspace) -> Packing:
    assert work.packing is not None
    return work.packing


def trained(work: Workspace, seed: int = 1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: array + 0.02 * torch.rand(array.shape, generator=draw) * (1 if name.endswith("var") else -1)
        for name, array in work.initial_state.items()
    }


def exchange(work: Workspace, seed: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what was sent, and an update in its format."""
    images = work.dataset.normalise(work.dataset.train_images[:8])
    sent = {name: work.initial_state[name] for name in work.format.sent_specs}
    return sent, work.format.encode(trained(work, seed), images)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_server_reads_what_the_client_wrote(kind: str, bits: int) -> None:
    work = work_of(kind, bits)
    packing, (sent, update) = packing_of(work), exchange(work)
    packed, left = packing.encode(update, sent, {}, torch.Generator().manual_seed(0))
    assert {name: spec.mistake(packed[name]) for name, spec in packing.specs.items()} == dict.fromkeys(packing.specs)
    assert packed.keys() == packing.specs.keys()
    read = packing.decode(packed, sent)
    assert {name: spec.mistake(read[name]) for name, spec in work.format.specs.items()} == dict.fromkeys(read)
    assert list(read) == list(work.format.specs)
    ann, wanted = (work.format.decode(each, sent, biases=False) for each in (read, update))
    for name in packing.names:
        assert torch.allclose(ann[name] + left[name], wanted[name], atol=1e-6)
        levels = (ann[name] - sent[name]) / packing.steps(packed)[name]
        assert torch.allclose(levels, levels.round(), atol=0.05)
        assert float(levels.abs().max().round()) <= 2 ** (bits - 1) - 1
    for name in work.format.specs.keys() - set(packing.names):
        assert torch.equal(read[name], update[name])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_quantised_and_what_has_a_range_is_not(kind: str) -> None:
    work = work_of(kind)
    names = set(packing_of(work).names)
    assert not any(map(is_statistic, names))
    assert all(work.format.sent_specs[name].values == "finite" for name in names)
    weights = {name for name, array in work.initial_state.items() if array.dim() > 1}
    assert weights <= names
    biases = {name for name in work.format.sent_specs if name.endswith("fc5.bias")}
    assert biases <= names or work.format.kind == "converted"


@pytest.mark.parametrize(("bits", "part"), [(8, 0.26), (4, 0.13), (2, 0.07)])
def test_an_upload_is_as_small_as_promised(bits: int, part: float) -> None:
    config = ["strategy.spiking=false", "model.name=mlp", "model.batch_norm=false", f"quantization.uploads={bits}"]
    work = Workspace(compose(None, config))
    specs = packing_of(work).specs
    before = sum(4 * array.numel() for array in work.initial_state.values())
    after = sum(spec.dtype.itemsize * torch.Size(spec.shape).numel() for spec in specs.values())
    assert after < part * before


def test_what_is_left_out_enters_the_next_update() -> None:
    work = work_of("plain", 2)
    packing, (sent, update) = packing_of(work), exchange(work)
    told, left = {name: torch.zeros_like(sent[name]) for name in packing.names}, dict[str, Tensor]()
    for number in range(20):
        packed, left = packing.encode(update, sent, left, torch.Generator().manual_seed(number))
        read = packing.decode(packed, sent)
        told = {name: array + read[name] - sent[name] for name, array in told.items()}
    for name, array in told.items():
        change = update[name] - sent[name]
        assert torch.allclose(array / 20, change, atol=float(change.abs().max()) / 5)


@settings(max_examples=60)
@given(
    st.binary(min_size=1, max_size=64),
    st.sampled_from([float("nan"), float("inf"), -1.0, 1e38, 1e11, 0.0, 1e-3]),
    st.integers(0, 9999),
)
def test_hostile_bytes_and_scales_never_get_through(content: bytes, scale: float, start: int) -> None:
    work = HOSTILE
    packing, (sent, update) = packing_of(work), EXCHANGE
    packed, _ = packing.encode(update, sent, {}, torch.Generator().manual_seed(0))
    codes, scales = packed[CODES].clone(), packed[SCALES].clone()
    start %= len(codes)
    bad = torch.tensor(list(content), dtype=torch.uint8)[: len(codes) - start]
    codes[start : start + len(bad)] = bad
    scales[start % len(scales)] = scale
    if packing.specs[SCALES].mistake(scales) is not None:
        assert not (0 <= scale <= 1e12)
        return
    try:
        read = packing.decode({**packed, CODES: codes, SCALES: scales}, sent)
    except ValueError:
        return
    ends = -(-packing.count * 4 // 8)
    assert len(codes) == ends
    found = {name: spec.mistake(read[name]) for name, spec in work.format.specs.items()}
    assert all(mistake is None or "beyond" in mistake for mistake in found.values())


HOSTILE = work_of("plain", 4)
EXCHANGE = exchange(HOSTILE)
