from __future__ import annotations

import hypothesis.strategies as st
import networks
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from snnfl.conversion import (
    BatchNormState,
    UnrecoverableError,
    fold,
    fold_batch_norm,
    recover,
    recover_bias,
    recover_weight,
    trace,
)
from snnfl.conversion.folding import NORM_FIELDS


def norm_of(module: nn.BatchNorm1d | nn.BatchNorm2d) -> BatchNormState:
    arrays = {field: getattr(module, name).detach() for field, name in NORM_FIELDS.items()}
    return BatchNormState(**arrays, eps=module.eps)


def random_norm(channels: int, seed: int, dtype: torch.dtype = torch.float32) -> BatchNormState:
    draw = torch.Generator().manual_seed(seed)
    gamma = torch.randn(channels, generator=draw).sign() * (torch.rand(channels, generator=draw) * 3 + 1e-3)
    rest = torch.randn(2, channels, generator=draw)
    var = torch.rand(channels, generator=draw) * 10 ** float(torch.randint(-6, 4, (), generator=draw))
    arrays = [t.to(dtype) for t in (gamma, *rest, var)]
    return BatchNormState(gamma=arrays[0], beta=arrays[1], mean=arrays[2], var=arrays[3], eps=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_folding_equals_pytorchs_fusion(bias):
    torch_draw = torch.Generator().manual_seed(0)
    for layer, norm, fuse in (
        (nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), fuse_conv_bn_eval),
        (nn.Linear(5, 4, bias=bias), nn.BatchNorm1d(4), fuse_linear_bn_eval),
    ):
        with torch.no_grad():
            for tensor in (*norm.parameters(), norm.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=torch_draw))
            norm.running_var.copy_(torch.rand(4, generator=torch_draw) + 0.1)
        fused = fuse(layer.eval(), norm.eval())
        weight, shift = fold_batch_norm(layer.weight, layer.bias, norm_of(norm))
        torch.testing.assert_close(weight, fused.weight)
        torch.testing.assert_close(shift, fused.bias)


@given(seed=st.integers(0, 2**20), channels=st.integers(1, 6), kernel=st.sampled_from([(), (3,), (2, 3)]))
def test_recover_inverts_fold(seed, channels, kernel):
    norm = random_norm(channels, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(channels, 2, *kernel, generator=draw)
    bias = torch.randn(channels, generator=draw)
    folded, shift = fold_batch_norm(weight, bias, norm)
    torch.testing.assert_close(recover_weight(folded, norm), weight, rtol=1e-6, atol=0)
    # The bias is the difference of larger numbers, so its error is relative to those.
    largest = torch.stack([norm.mean.abs(), bias.abs(), (norm.beta / norm.scale).abs()]).amax(0)
    assert ((recover_bias(shift, norm) - bias).abs() <= 2e-6 * largest).all()


def dead_norm() -> BatchNormState:
    norm = random_norm(3, seed=4)
    norm.gamma[1] = 1e-9
    return norm


def test_a_dead_channel_is_an_error_that_names_it():
    folded, _ = fold_batch_norm(torch.ones(3, 2), None, dead_norm())
    with pytest.raises(UnrecoverableError, match=r"channel 1 has \|gamma/sigma\| = .* fallback"):
        recover_weight(folded, dead_norm())


def test_a_dead_channel_takes_the_fallback_and_the_others_do_not():
    weight, fallback = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.full((3, 2), 7.0)
    folded, shift = fold_batch_norm(weight, torch.ones(3), dead_norm())
    recovered = recover_weight(folded, dead_norm(), fallback=fallback)
    torch.testing.assert_close(recovered[[0, 2]], weight[[0, 2]], rtol=1e-6, atol=0)
    assert torch.equal(recovered[1], fallback[1])
    assert recover_bias(shift, dead_norm())[1] == 0


def test_exactly_zero_gamma_gives_no_nan():
    norm = random_norm(2, seed=5)
    norm.gamma[:] = 0
    folded, shift = fold_batch_norm(torch.ones(2, 2), torch.ones(2), norm)
    assert torch.isfinite(recover_weight(folded, norm, fallback=torch.ones(2, 2))).all()
    assert torch.isfinite(recover_bias(shift, norm)).all()


def test_channel_counts_must_agree():
    with pytest.raises(ValueError, match="3 channels, the layer before it 2"):
        fold_batch_norm(torch.ones(2, 2), None, random_norm(3, seed=0))


@pytest.mark.parametrize("network", [networks.Plain, networks.Residual, networks.Dense])
@pytest.mark.parametrize("biases", [True, False])
def test_a_networks_arrays_are_recovered(network, biases):
    model = networks.trained(network)
    graph, state = trace(model), model.state_dict()
    update: dict[str, Tensor] = dict(fold(graph, state))
    for node in graph.affines:
        if node.norm:
            update |= {f"{node.norm}.{field}": state[f"{node.norm}.{name}"] for field, name in NORM_FIELDS.items()}
    recovered = recover(graph, update, biases=biases)
    norms = {node.norm for node in graph.affines}
    wanted = [
        name
        for name in state
        if not name.endswith("num_batches_tracked")
        and (biases or not name.endswith("bias") or name.rpartition(".")[0] in norms)
    ]
    assert sorted(recovered) == sorted(wanted)
    for name in wanted:
        torch.testing.assert_close(recovered[name], state[name], rtol=1e-9, atol=1e-12)


def test_recover_names_the_layer_of_a_dead_channel():
    model = networks.trained(networks.Residual)
    with torch.no_grad():
        model.norm1.weight[0] = 0
    graph, state = trace(model), model.state_dict()
    update = dict(fold(graph, state))
    for node in graph.affines:
        if node.norm:
            update |= {f"{node.norm}.{field}": state[f"{node.norm}.{name}"] for field, name in NORM_FIELDS.items()}
    with pytest.raises(UnrecoverableError, match="conv1: channel 0"):
        recover(graph, update, biases=False)
    recovered = recover(graph, update, biases=False, fallback={name: tensor + 1 for name, tensor in state.items()})
    torch.testing.assert_close(recovered["conv1.weight"][0], state["conv1.weight"][0] + 1)
