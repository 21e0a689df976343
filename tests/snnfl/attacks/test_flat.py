"""A specialised graph gives what the traced one gives, with less to do."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx

from snnfl.attacks import flat


def objective(found, fixed):
    weights = (fixed["w"] @ fixed["w"].T).tanh()  # the same whatever is found
    idle = found["x"].permute(0, 1).view(3, 4).expand(3, 4)
    return ((idle @ weights).sin() * fixed["b"]).sum() + (found["y"] - 1).square().sum()


def given(seed):
    draw = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(3, 4, generator=draw), "y": torch.randn(2, generator=draw)}


FIXED = {"w": torch.linspace(-1, 1, 20).view(4, 5), "b": torch.arange(4.0)}


def traced():
    return make_fx(grad_and_value(objective))(given(0), FIXED)


def test_a_specialised_graph_gives_the_same_for_every_argument_and_keeps_no_first_one():
    run = flat.specialised(traced(), given(0), (FIXED,), compiled=False, iterations=1)
    for seed in range(3):
        gradient, value = run(given(seed))
        expected, objective_value = grad_and_value(objective)(given(seed), FIXED)
        assert gradient.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(gradient[name], expected[name])
        torch.testing.assert_close(value, objective_value)


def test_what_never_changes_is_computed_once(monkeypatch):
    lean = []
    make = flat._with_constants
    monkeypatch.setattr(flat, "_with_constants", lambda *given: lean.append(make(*given)) or lean[0])
    whole = traced()
    before = [node.target for node in whole.graph.nodes]
    flat.specialised(whole, given(0), (FIXED,), compiled=False, iterations=1)
    after = [node.target for node in lean[0].graph.nodes]
    assert torch.ops.aten.tanh.default in before
    assert torch.ops.aten.tanh.default not in after
    assert not {torch.ops.aten.permute.default, torch.ops.aten.expand.default} <= {*after}
    assert len(after) < 0.8 * len(before)


def test_zeros_are_not_added_and_need_no_tensor_to_have_their_shape(monkeypatch):
    lean = []
    make = flat._with_constants
    monkeypatch.setattr(flat, "_with_constants", lambda *given: lean.append(make(*given)) or lean[0])

    def function(given):
        found = given["x"]
        return (torch.zeros_like(found) + found.sin()) * torch.ones_like(found) + torch.zeros_like(found).cos()

    first = {"x": torch.ones(3)}
    run = flat.specialised(make_fx(function)(first), first, (), compiled=False, iterations=1)
    torch.testing.assert_close(run({"x": torch.arange(3.0)}), torch.arange(3.0).sin() + 1)
    called = [node.name for node in lean[0].graph.nodes if node.op == "call_function"]
    assert [name.partition("_")[0] for name in called] == ["sin", "mul", "add"]


SAMPLE = torch.linspace(-1, 2, 12).view(3, 4)
ARGUMENTS = {
    "view": ([4, 3],), "_unsafe_view": ([2, 6],), "expand": ([2, 3, 4],), "rsub": (1.0,), "pow": (2,),
    "mm": (SAMPLE.T,), "bmm": (SAMPLE.T[None],), "addmm": (SAMPLE[:, :3], SAMPLE), "transpose": (0, 1),
    "permute": ([1, 0],), "select": (1, 2), "unsqueeze": (0,), "constant_pad_nd": ([1, -1, 0, 2], 0.5), "t": (),
    "neg": (), "relu": (),
}  # fmt: skip


@pytest.mark.parametrize("kernel", flat.DIRECT, ids=str)
def test_functions_that_are_called_directly_give_what_the_kernels_give(kernel):
    name, overload = kernel.__name__.split(".")
    if name == "sum":
        calls = [((SAMPLE, [0], True), {}), ((SAMPLE, [0, 1]), {})] if overload == "dim_IntList" else [((SAMPLE,), {})]
    elif name == "stack":
        calls = [(([SAMPLE, SAMPLE + 1],), {}), (([SAMPLE, SAMPLE + 1], 1), {})]
    elif name == "bmm":
        calls = [((SAMPLE[None], *ARGUMENTS[name]), {})]
    else:
        other = SAMPLE.exp() if overload == "Tensor" else 3
        calls = [((SAMPLE, *ARGUMENTS.get(name, (other,))), {})]
        calls += [((SAMPLE, other), {"alpha": 2})] if name in ("add", "sub") else []
    for given, options in calls:
        torch.testing.assert_close(flat.DIRECT[kernel](*given, **options), kernel(*given, **options), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("compiler", "kept", "iterations", "pays"),
    [("c++", False, flat.NEW, True), ("c++", False, flat.NEW - 1, False), ("c++", True, flat.KEPT, True),
     ("c++", True, flat.KEPT - 1, False), (None, True, 10**9, False)],
)  # fmt: skip
def test_compiling_chooses_itself_where_it_pays(tmp_path, monkeypatch, compiler, kept, iterations, pays):
    monkeypatch.setattr(flat.shutil, "which", lambda name: compiler)
    mark = tmp_path / "folder" / "mark"
    if kept:
        flat._keep(mark)
    assert flat._pays(mark, iterations) is pays


@pytest.mark.parametrize(
    ("compiled", "iterations", "calls"), [(None, 300, 0), (None, flat.NEW, 1), (True, 1, 1), (False, 10**6, 0)]
)
def test_the_choice_may_be_made_by_hand(tmp_path, monkeypatch, compiled, iterations, calls):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(flat.shutil, "which", lambda name: "c++")
    seen = []
    monkeypatch.setattr(torch, "compile", lambda module: seen.append(module) or module)
    flat.specialised(traced(), given(0), (FIXED,), compiled=compiled, iterations=iterations)
    assert len(seen) == calls
    assert len(list(tmp_path.rglob("*/*"))) == calls


def test_a_graph_of_other_shapes_is_another_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    module = torch.fx.symbolic_trace(torch.nn.ReLU())
    marks = {flat._mark(module, [torch.zeros(size)]) for size in (2, 3)}
    assert len(marks | {flat._mark(module, [torch.zeros(2)])}) == 2
