"""A traced objective made cheap to run over and over: what never changes is computed once, idle steps are left out."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from snnfl.attacks.convolutions import choose_kernel

ATEN = torch.ops.aten
VIEWS = (ATEN.view.default, ATEN._unsafe_view.default, ATEN.expand.default, ATEN.slice.Tensor)
"""Operations that do nothing if the shape stays; all keep the order of what they show."""

DIRECT: Mapping[Any, Callable[..., Any]] = {
    ATEN.view.default: torch.reshape,
    ATEN._unsafe_view.default: torch.reshape,
    ATEN.expand.default: Tensor.expand,
    **{
        getattr(getattr(ATEN, name), overload): getattr(torch, name)
        for name, overload in (
            ("add", "Tensor"), ("mul", "Tensor"), ("mul", "Scalar"), ("div", "Tensor"), ("div", "Scalar"),
            ("sub", "Tensor"), ("rsub", "Scalar"), ("pow", "Tensor_Scalar"), ("neg", "default"), ("mm", "default"),
            ("bmm", "default"), ("addmm", "default"), ("t", "default"), ("transpose", "int"), ("permute", "default"),
            ("select", "int"), ("unsqueeze", "default"), ("sum", "default"), ("sum", "dim_IntList"),
            ("relu", "default"), ("constant_pad_nd", "default"), ("stack", "default"),
        )
    },
}  # fmt: skip
"""What Python calls without looking for a kernel's schema, which takes longer than a small kernel: 2 us of 4."""

FILLED = {ATEN.zeros_like.default: 0, ATEN.ones_like.default: 1, ATEN.new_zeros.default: 0, ATEN.new_empty.default: 0}
"""What is filled with a number, whatever the tensor holds from which it has its shape."""

NEW, KEPT = 200_000, 10_000
"""Iterations of one image, of all victims and starts together, from which on compiling pays: at first, and once kept.

LeNet-5: 75 CPU-seconds at first, 3 from torch's cache, and some 0.3 ms less per iteration and image; measured on a busy
machine, so both limits are rough.
"""


def specialised(
    graph: fx.GraphModule, changing: Any, fixed: Sequence[Any], *, compiled: bool | None, iterations: int
) -> Callable[[Any], Any]:
    """Return ``graph(changing, *fixed)`` as a function of ``changing``.

    At LeNet-5 with one image, most of an iteration are calls of small operations. A third of these see nothing that
    changes, repeat another one, or only give the same tensor another name; the others are called the shortest way.

    Args:
        graph: From ``make_fx``; it is changed.
        changing: Its first argument, a nest of tensors as later ones will be.
        fixed: Its other arguments.
        compiled: Whether it is compiled; ``None`` for where it pays.
        iterations: How often it will run, times the images of all lanes.
    """
    from torch._functorch.compile_utils import fx_graph_cse  # half a second: it imports sympy

    moving, nest = pytree.tree_flatten(changing)
    out = graph.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    graph.graph.set_codegen(fx.graph.CodeGen())
    lean = fx.GraphModule(graph, fx_graph_cse(graph.graph))
    _drop_idle(lean.graph)
    lean = _with_constants(lean, len(moving), pytree.tree_leaves(tuple(fixed)))
    mark = _mark(lean, moving)
    fast: Callable[..., Any]
    if compiled if compiled is not None else _pays(mark, iterations):
        fast = torch.compile(lean)
        _keep(mark)
    else:
        fast = _called_directly(lean)

    def run(current: Any) -> Any:
        given, found = pytree.tree_flatten(current)
        if found != nest:
            raise ValueError(f"expected {nest}, found {found}")
        with torch.inference_mode():
            return pytree.tree_unflatten(fast(*given), out)

    return run


def _called_directly(module: fx.GraphModule) -> fx.GraphModule:
    """Let a graph that isn't compiled call what takes the least time: functions by Python's way in, small kernels."""
    for node in module.graph.nodes:
        choose_kernel(node)
        node.target = DIRECT.get(node.target, node.target)
    module.recompile()
    return module


def _drop_idle(graph: fx.Graph) -> None:
    """Leave out what gives its first argument as it is, or another one to which it adds zeros."""
    for node in graph.nodes:
        if node.target is ATEN.add.Tensor and _is_zero(node.args[0]) and isinstance(node.args[1], fx.Node):
            zeros, other = (each.meta["val"] for each in node.args)
            if zeros.shape == other.shape and zeros.dtype == other.dtype and not node.kwargs:
                node.replace_all_uses_with(node.args[1])
            continue
        source = node.args[0] if node.op == "call_function" and node.args else None
        value, before = (each.meta.get("val") if isinstance(each, fx.Node) else None for each in (node, source))
        if not isinstance(value, Tensor) or not isinstance(before, Tensor):
            continue
        same = value.shape == before.shape
        permuted = node.target is ATEN.permute.default and list(node.args[1]) == sorted(node.args[1])
        if node.target is ATEN.detach.default or permuted or (same and node.target in VIEWS):
            node.replace_all_uses_with(source)
    graph.eliminate_dead_code()


def _is_zero(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in (ATEN.zeros_like.default, ATEN.new_zeros.default)


def _with_constants(module: fx.GraphModule, changing: int, fixed: Sequence[Tensor]) -> fx.GraphModule:
    """Compute all that doesn't depend on the first arguments, and keep it as buffers."""
    places = [node for node in module.graph.nodes if node.op == "placeholder"]
    mutable = any(node.target._schema.is_mutable for node in module.graph.nodes if hasattr(node.target, "_schema"))
    filled = {} if mutable else {node: FILLED[node.target] for node in module.graph.nodes if node.target in FILLED}
    moving, values = set(places[:changing]), dict(zip(places[changing:], fixed, strict=True))
    root, graph = torch.nn.Module(), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}

    def constant(node: fx.Node) -> fx.Node:
        if node not in copied:
            name = f"constant{len(list(root.buffers()))}"
            root.register_buffer(name, values[node].clone())
            copied[node] = graph.get_attr(name)
            copied[node].meta["val"] = values[node]
        return copied[node]

    for node in module.graph.nodes:
        if node in moving or node.op == "output" or not (node in filled or moving.isdisjoint(node.all_input_nodes)):
            moving.add(node)
            copied[node] = graph.node_copy(node, constant)
        elif node.op == "get_attr":
            values[node] = getattr(module, node.target)
        elif node in filled:
            value = node.meta["val"]
            values[node] = torch.full(value.shape, filled[node], dtype=value.dtype, device=value.device)
        elif node.op != "placeholder":
            args, options = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **options)
    return fx.GraphModule(root, graph)


def _mark(module: fx.GraphModule, arguments: Sequence[Tensor]) -> Path:
    """Return the file that says that a graph was compiled before: beside what torch keeps of it."""
    shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in (*arguments, *module.buffers())]
    text = repr((torch.__version__, shapes, module.code))
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or _cache_folder())
    return folder / "snnfl" / hashlib.sha256(text.encode()).hexdigest()[:32]


def _cache_folder() -> str:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def _pays(mark: Path, iterations: int) -> bool:
    """Tell whether compiling costs less than it saves."""
    if iterations < KEPT or shutil.which(os.environ.get("CXX", "g++")) is None:
        return False
    return iterations >= NEW or mark.exists()


def _keep(mark: Path) -> None:
    with suppress(OSError):  # a folder that is for reading alone
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
