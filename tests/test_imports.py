"""The rules that keep the rooms clean, read from the source of every module."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("snnfl", "clients", "strategies", "experiments")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# An import only goes down.
FORBIDDEN_IMPORTS = {
    "snnfl": {"flwr", "flwr_datasets", "clients", "strategies", "experiments"},
    "clients": {"strategies", "experiments"},
    "strategies": {"clients", "experiments"},
    "experiments": set(),
}
FACE = {"snnfl/api.py", "snnfl/results.py", "snnfl/commands.py"}
"""What a user calls and types: it stands above the storeys, and no room imports it."""
OF_FLOWER = {"snnfl/flower.py"}
"""What a Flower app that isn't ours imports."""
OPTIONAL = {
    Path("snnfl/spiking/spikingjelly_modules.py"): "spikingjelly",
    Path("strategies/tracking.py"): "tensorboard",
}
"""What an extra of the project brings, and the only module that imports it."""
MAY_PRINT = {"experiments/bounds_study.py", "experiments/cli.py", "experiments/flower_simulation.py"}
LOCAL_RANDOMNESS = {
    "random.Random",
    *(f"numpy.random.{name}" for name in ("default_rng", "Generator", "SeedSequence", "PCG64", "RandomState")),
}
# Flower samples nodes from Python's global generator and noise from NumPy's: one function sets their state for a
# selection or an aggregation and puts it back.
GLOBAL_RANDOMNESS = {
    "strategies/population.py": {
        f"{module}.{name}"
        for module, names in (
            ("random", ("getstate", "setstate", "seed")),
            ("numpy.random", ("get_state", "set_state", "seed")),
        )
        for name in names
    },
    "experiments/compare/warm.py": {"numpy.random.seed", "torch.default_generator.seed"},  # as a fresh process has it
}
TORCH_DRAWS = {
    f"torch.{name}"
    for name in ("bernoulli", "multinomial", "normal", "poisson", "rand", "randint", "randn", "randperm")
}


def problems(source: str, path: str) -> list[str]:
    """Return ``line: what is wrong`` for a module at ``path`` below the root."""
    tree = ast.parse(source)
    names = dict(_imported_names(tree, path))
    found = []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.expr)):
        found += [(node.lineno, text) for text in (*_import_problems(node, path), *_code_problems(node, path, names))]
    found += [(400, "more than 400 lines")] if len(source.splitlines()) > 400 else []
    return [f"{path}:{line}: {text}" for line, text in found]


def _import_problems(node: ast.AST, path: str) -> Iterator[str]:
    forbidden = set() if path in FACE else FORBIDDEN_IMPORTS[Path(path).parts[0]]
    if path.startswith("snnfl/data/"):
        forbidden = forbidden - {"flwr_datasets"}
    if path in OF_FLOWER:
        forbidden = forbidden - {"flwr"}
    for target in _targets(node, path):
        if target.partition(".")[0] in forbidden:
            yield f"imports {target}"


def _code_problems(node: ast.AST, path: str, names: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Assert):
        yield "assert as validation; raise an error that names the value"
    if not isinstance(node, ast.Call):
        return
    called = _dotted(node.func, names)
    if called == "print" and path not in MAY_PRINT:
        yield "print outside the CLI"
    allowed = LOCAL_RANDOMNESS | GLOBAL_RANDOMNESS.get(path, set())
    if called.startswith(("random.", "numpy.random.")) and called not in allowed:
        yield f"{called} uses global random state"
    if (
        called.startswith("torch.")
        and called.rpartition(".")[2]
        in (
            "manual_seed",
            "manual_seed_all",
            "seed",
            "fork_rng",
        )
        and called not in allowed
    ):
        yield f"{called} touches global random state"
    if called in TORCH_DRAWS and not any(keyword.arg == "generator" for keyword in node.keywords):
        yield f"{called} without a generator"


def _targets(node: ast.AST, path: str) -> Iterator[str]:
    """Yield the absolute name of every module that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        here = Path(path).parts[: -node.level] if node.level else ()
        yield ".".join([*here, *filter(None, [node.module])])


def _imported_names(tree: ast.AST, path: str) -> Iterator[tuple[str, str]]:
    """Yield ``(local name, absolute name)``, so that ``import numpy as np`` hides nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        if isinstance(node, ast.ImportFrom):
            module = next(_targets(node, path))
            yield from ((alias.asname or alias.name, f"{module}.{alias.name}") for alias in node.names)


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    return f"{_dotted(node.value, names)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_keeps_the_rules(path: Path) -> None:
    assert not problems((ROOT / path).read_text(encoding="utf-8"), path.as_posix())


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("snnfl/rng.py", "import flwr.app"),
        ("snnfl/flower.py", "from strategies.spiking import Spiking"),
        ("snnfl/rng.py", "from flwr_datasets.partitioner import IidPartitioner"),
        ("snnfl/data/sources.py", "def f():\n    from flwr.app import Message"),
        ("snnfl/data/sources.py", "from ...strategies import spiking"),
        ("clients/client_app.py", "from strategies.spiking import Spiking"),
        ("strategies/spiking.py", "import clients"),
        ("experiments/tables.py", "print(1)"),
        ("experiments/cli.py", "assert True"),
        ("snnfl/rng.py", "import numpy as np\nnp.random.seed(0)"),
        ("snnfl/rng.py", "from numpy import random as r\nr.rand(2)"),
        ("snnfl/rng.py", "import random\nrandom.shuffle([])"),
        ("strategies/population.py", "import random\nrandom.shuffle([])"),
        ("strategies/guarded.py", "import random\nrandom.setstate(())"),
        ("snnfl/rng.py", "from torch import manual_seed as s\ns(0)"),
        ("snnfl/rng.py", "import torch\ntorch.cuda.manual_seed_all(0)"),
        ("snnfl/rng.py", "import torch\ntorch.randn(2)"),
        ("snnfl/rng.py", "\n" * 401),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str) -> None:
    assert len(problems(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("snnfl/flower.py", "from flwr.serverapp.strategy import Strategy"),
        ("snnfl/data/partitions.py", "from flwr_datasets.partitioner import IidPartitioner"),
        ("experiments/cli.py", "from clients.client_app import app\nprint(app)"),
        ("snnfl/rng.py", "import torch\ntorch.Generator().manual_seed(0)\ntorch.randn(2, generator=g)"),
        ("snnfl/rng.py", "import numpy as np\nnp.random.default_rng(0).random()"),
        ("strategies/population.py", "import random\nrandom.setstate(random.getstate())"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert not problems(source, path)


ROW = re.compile(r"\| `(\w+)(?:/|\.py)` \| .* \| ([\w, –]+) \|")


def test_a_room_uses_what_the_architecture_says_and_nothing_else() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = {room: set(used.split(", ")) - {"–"} for room, used in ROW.findall(text)}
    found: dict[str, set[str]] = {room: set() for room in _rooms()}
    for module, others in _imports().items():
        if module.startswith("snnfl."):
            found[module.split(".")[1]] |= {other.split(".")[1] for other in others if other.startswith("snnfl.")}
    assert {room: used - {room} for room, used in found.items()} == table


def test_a_room_stands_above_all_that_it_uses() -> None:
    """In the order of the table, and so in no circle."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    below: set[str] = set()
    for room, used in ROW.findall(text):
        assert set(used.split(", ")) - {"–"} <= below, room
        below.add(room)


def test_no_files_import_each_other() -> None:
    assert _circles(_imports()) == []


def test_a_circle_is_found() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def _rooms() -> set[str]:
    return {path.parts[1].removesuffix(".py") for path in MODULES if path.parts[0] == "snnfl"} - {"__init__"}


@cache
def _statements(path: Path) -> list[ast.AST]:
    """Return the import statements of a module."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _imports() -> dict[str, set[str]]:
    """Return the modules of this project that each of its modules imports, those for types alone included."""
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    found = {}
    for module, path in modules.items():
        names = {name for node in _statements(path) for name in _named(node, path.as_posix())}
        found[module] = {each if each in modules else each.rpartition(".")[0] for each in names} & set(modules) - {
            module
        }
    return found


def _named(node: ast.AST, path: str) -> Iterator[str]:
    """Yield what an import statement names: modules, and what it takes out of modules."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        yield from (f"{next(_targets(node, path))}.{alias.name}" for alias in node.names)


def _circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that reach each other."""

    def reached(start: str) -> set[str]:
        seen, waiting = set[str](), [start]
        while waiting:
            for other in imports[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    ahead = {module: reached(module) for module in imports}
    circles = {tuple(sorted(other for other in ahead[m] if m in ahead[other])) for m in imports if m in ahead[m]}
    return sorted(map(list, circles))


def test_declared_packages_are_the_packages_on_disk() -> None:
    declared = set(PYPROJECT["tool"]["setuptools"]["packages"]) - {"snnfl._app"}
    assert {name.removeprefix("snnfl._app.") for name in declared} == {".".join(path.parent.parts) for path in MODULES}


def test_every_imported_library_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in PYPROJECT["project"]["dependencies"]}
    imported = {
        name.partition(".")[0]
        for path in MODULES
        for node in _statements(path)
        for name in _targets(node, path.as_posix())
        if name.partition(".")[0] != OPTIONAL.get(path)
    }
    libraries = imported - set(sys.stdlib_module_names) - set(PACKAGES)
    providers = metadata.packages_distributions()
    assert [name for name in libraries if not declared & set(map(canonicalize_name, providers.get(name, [])))] == []
