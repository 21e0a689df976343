"""The threat model is checked, and attack code cannot reach the ground truth."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from victims import attacked, digits, small_cnn, small_mlp, spiking_victim

import snnfl
from snnfl.attacks import names
from snnfl.attacks.networks import network_of
from snnfl.attacks.registry import get_attack
from snnfl.auditing.bias_errors import bias_errors
from snnfl.auditing.controls import plain_twin
from snnfl.auditing.victims import Victim
from snnfl.config import ConfigError, ConversionConfig
from snnfl.threat import FACTS, Knowledge, PublicImages, ThreatModelError

ROOT = Path(__file__).parents[3]
PACKAGES = ("clients", "snnfl.data")
PRIVATE = (
    *PACKAGES,
    "snnfl.api",
    "snnfl.plugins",
    "snnfl.workspace",
    "snnfl.auditing.ground_truth",
    "snnfl.auditing.recording",
    "snnfl.auditing.victims",
)
"""What holds or loads private images, labels and biases, or the files that tell them."""

HIDDEN_IMPORTS = ("__import__", "builtins.__import__", "exec", "eval", "sys.modules")

FACE = ROOT / "snnfl/__init__.py"
"""It imports what it offers when that is asked for: :mod:`snnfl.api`, from which everything can be reached."""

LOADER = ROOT / "snnfl/plugins.py"
"""It runs what a user names."""

OPTIONAL = (
    "snnfl/plugins.py",
    "snnfl/spiking/export.py",
    "snnfl/neurons/kernels.py",
    "snnfl/neurons/kernel_triton.py",
    "snnfl/neurons/kernel_triton_training.py",
    "snnfl/data/neuromorphic.py",
    "snnfl/data/series.py",
    "snnfl/torchvision_guard.py",
)
"""Files that look for other people's packages, which may be missing. None of them is attack code."""


def test_the_page_says_of_each_fact_what_runs_without_it():
    page = (ROOT / "docs/audit.md").read_text(encoding="utf-8")
    rows = page.partition("| fact | without it |")[2].partition("\n\n")[0].splitlines()[2:]
    assert {name for row in rows for name in row.split("|")[1].replace("`", "").replace(",", " ").split()} == {
        *FACTS.items
    }


def imports_of(path: Path) -> set[str]:
    """Name every module that an import statement could load, packages on the way included.

    Raises:
        AssertionError: For what imports without a statement, outside the files that are known to.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            found |= {"snnfl.api" for alias in node.names if alias.name == "snnfl"}
        if isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *filter(None, [node.module])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
            found |= {"snnfl.api" for alias in node.names if module == "snnfl" and alias.name in snnfl.__all__}
        if isinstance(node, ast.Name | ast.Attribute) and path != LOADER:
            assert ast.unparse(node) not in HIDDEN_IMPORTS, f"{path}: {ast.unparse(node)} may import anything"
    loaders = {name for name in found if name.split(".")[0] in ("importlib", "runpy")}
    assert not loaders or str(path.relative_to(ROOT)) in OPTIONAL, f"{path}: {loaders} may import anything"
    return {".".join(name.split(".")[:end]) for name in found for end in range(1, name.count(".") + 2)}


def reachable(start: set[Path]) -> set[str]:
    """Name every module of the project that these files load, directly or through others."""
    seen, waiting, found = set[Path](), set(start), set[str]()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in imports_of(path):
            place = ROOT / Path(*name.split("."))
            files = {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}
            found |= {name} if files else set()
            waiting |= files - seen - {FACE}
    return found


def test_attack_code_cannot_import_what_is_private():
    rooms = ("snnfl/attacks", "snnfl/membership_attacks", "snnfl/model_attacks")
    found = reachable({path for room in rooms for path in (ROOT / room).rglob("*.py")})
    assert "snnfl.threat.federation" in found
    assert not {name for name in found if name.startswith(PRIVATE)}
    assert {"snnfl.spiking.network", "snnfl.threat.view"} <= found  # the walk does go somewhere
    assert all((ROOT / Path(*name.split("."))).with_suffix(".py").is_file() or name in PACKAGES for name in PRIVATE)


def test_the_walk_goes_through_other_modules():
    """Scoring may know everything, and a walk from there says so."""
    assert set(PRIVATE) - {"clients", "snnfl.api"} <= reachable({ROOT / "snnfl/auditing/suite.py"})


class Fake(type(ROOT)):
    """A module that isn't on disk."""

    def read_text(self, *arguments, **keywords):
        return self.source


def walked(source):
    path = Fake(ROOT / "snnfl/attacks/walked.py")
    path.source = source
    return imports_of(path)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import snnfl.auditing.ground_truth", "snnfl.auditing.ground_truth"),
        ("from ..auditing.ground_truth import GroundTruth", "snnfl.auditing.ground_truth"),
        ("def attack():\n    from snnfl.data import load", "snnfl.data"),
        ("from snnfl import workspace", "snnfl.workspace"),
        ("import clients.private_state", "clients"),
        ("import snnfl", "snnfl.api"),
        ("from snnfl import load_run", "snnfl.api"),
    ],
)
def test_the_walk_would_find_it(source, module):
    assert module in walked(source)


@pytest.mark.parametrize(
    "source",
    [
        "import importlib",
        "from importlib import import_module",
        "__import__('snnfl.workspace')",
        "exec('import snnfl.workspace')",
        "import sys\nsys.modules['snnfl.workspace']",
    ],
)
def test_an_import_that_no_statement_makes_is_an_error(source):
    with pytest.raises(AssertionError, match="may import anything"):
        walked(source)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"images": 0}, "images=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: expected a finite number of more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"momentum": -0.1}, "momentum=-0.1: expected a finite number of at least 0"),
    ],
)
def test_a_flag_out_of_range_is_named(flags, message):
    with pytest.raises(ThreatModelError, match=message):
        Knowledge(**flags)


def test_steps_follow_from_images_batches_and_epochs():
    assert Knowledge(images=10, batch_size=4, epochs=2).steps == 6
    assert Knowledge(images=9, batch_size=4, epochs=2).steps == 4  # the ninth joins the second batch
    assert Knowledge(images=10, batch_size=None, epochs=2).steps is None


def test_a_view_holds_nothing_that_the_flags_deny():
    plain = attacked(small_mlp()).view
    spiking = attacked(small_mlp(), conversion=ConversionConfig(steps=4)).view
    for view, changes, message in (
        (spiking, {"knowledge": replace(spiking.knowledge, biases=True)}, "biases=True"),
        (plain, {"labels": torch.tensor([1])}, "labels=False"),
        (plain, {"knowledge": replace(plain.knowledge, labels=True)}, "labels=True"),
        (
            plain,
            {"initial": {}, "knowledge": replace(plain.knowledge, initial_weights=False)},
            "initial_weights=False",
        ),
        (
            plain,
            {"earlier": (plain.exchange,), "knowledge": replace(plain.knowledge, earlier_rounds=False)},
            "earlier_rounds=False",
        ),
        (
            plain,
            {"orders": torch.zeros(1, 1).long(), "knowledge": replace(plain.knowledge, batch_order=False)},
            "batch_order=False",
        ),
        (plain, {"generative_model": lambda latents: latents}, "generative_model=False"),
        (plain, {"knowledge": replace(plain.knowledge, generative_model=True)}, "generative_model=True"),
        (plain, {"orders": torch.zeros(2, 1).long()}, r"orders of \[2, 1\]: the client has 1 images"),
        (
            plain,
            {
                "public": PublicImages(inputs=torch.zeros(1, 1, 8, 8), labels=torch.zeros(1, dtype=torch.int64)),
                "knowledge": replace(plain.knowledge, public_images=False),
            },
            "public_images=False",
        ),
    ):
        with pytest.raises(ThreatModelError, match=message):
            replace(view, **changes)


def test_no_bias_is_in_the_view_of_an_s_run():
    victim = attacked(small_mlp(), conversion=ConversionConfig(steps=4))
    assert set(victim.truth.biases) == {"fc1.bias", "fc2.bias"}
    assert not set(victim.truth.biases) & set(victim.view.exchange.sent)
    for name, array in victim.truth.biases.items():
        assert not torch.equal(victim.view.exchange.received[name], array)


@pytest.mark.parametrize(
    ("attack", "flag", "value", "fact"),
    [
        ("dlg", "learning_rate", None, "learning_rate"),
        ("dlg", "momentum", None, "optimizer"),
        ("idlg", "loss", False, "loss"),
        ("inverting_gradients", "architecture", False, "architecture"),
        ("inverting_gradients", "norm_mode", None, "norm_mode"),
        ("inverting_gradients", "biases", False, "biases"),
        ("inverting_gradients", "clients", None, "clients"),
        ("inverting_statistics", "norm_statistics", "estimated", "update_statistics"),
        ("huang", "norm_statistics", "unknown", "norm_statistics"),
        ("closed_form", "epochs", None, "epochs"),
        ("generative", "generative_model", False, "generative_model"),
        ("order_invariant", "momentum", None, "optimizer"),
        ("feature_inversion", "norm_mode", None, "norm_mode"),
        ("snn_naive", "thresholds", False, "thresholds"),
        ("snn_surrogate", "images", None, "images"),
        ("reconverted_as_is", "batch_size", None, "batch_size"),
        ("reconverted_zero", "loss", False, "loss"),
        ("reconverted_inferred", "norm_statistics", "unknown", "update_statistics"),
        ("reconverted_joint", "architecture", False, "architecture"),
        ("reconverted_rounds", "earlier_rounds", False, "earlier_rounds"),
        ("reconverted_initial", "initial_weights", False, "initial_weights"),
        ("reconverted_train", "norm_mode", None, "norm_mode"),
        ("reconverted_statistics", "norm_statistics", "estimated", "update_statistics"),
        ("joint_rounds", "earlier_rounds", False, "earlier_rounds"),
        ("reconverted_calibrated", "thresholds", False, "thresholds"),
        ("thresholds_alone", "thresholds", False, "thresholds"),
        ("imprint", "crafted_weights", False, "crafted_weights"),
        ("loki", "crafted_weights", False, "crafted_weights"),
        ("native_closed_form", "biases", False, "biases"),
        ("event_recovery", "learning_rate", None, "learning_rate"),
        ("native_features", "images", None, "images"),
        ("sequence_recovery", "learning_rate", None, "learning_rate"),
        ("image_recovery", "biases", False, "biases"),
        ("native_adaptive", "architecture", False, "architecture"),
    ],
)
def test_a_denied_flag_refuses_the_attack_with_the_reason(attack, flag, value, fact):
    kinds = get_attack(attack).against
    if kinds == {"native"}:
        victim = spiking_victim(*digits(1)[:2], sequence=False)
    else:
        victim = attacked(small_mlp(), conversion=ConversionConfig(steps=4) if "converted" in kinds else None)
    view = replace(victim.view, knowledge=replace(victim.view.knowledge, **{flag: value}))
    way = " (--generative-model MODULE:FACTORY brings one)" if fact == "generative_model" else ""
    assert get_attack(attack).refusal(view) == f"{attack}: needs {fact}, which the threat model denies{way}"


def test_every_attack_is_refused_something_above():
    marks = test_a_denied_flag_refuses_the_attack_with_the_reason.pytestmark
    cases = marks[0].args[1]
    assert {case[0] for case in cases} == set(names())
    # Labels are never granted by default, so no attack needs them. Nor public images, which every attack takes where
    # they are there, nor the surrogate, for which the default one stands in, nor the order of batches, without which
    # there is another attack. Other clients' updates are for membership
    # (tests/snnfl/membership_attacks/test_federated.py). That an update is one client's alone says the number of
    # clients (tests/snnfl/auditing/test_sums.py). Any other fact is some attack's.
    unneeded = {"labels", "public_images", "surrogate", "batch_order", "other_clients", "individual"}
    assert {case[3] for case in cases} == set(FACTS.names()) - unneeded


@pytest.mark.parametrize("spiking", [False, True])
def test_the_view_has_no_arrays_but_those_that_travelled(spiking):
    model = small_cnn(norm=True)
    view = attacked(model, images=2, conversion=ConversionConfig(steps=4) if spiking else None).view
    assert all(array.is_meta for array in (*view.model.parameters(), *view.model.buffers()))
    assert not any(parameter.is_meta for parameter in model.parameters())  # a copy
    network = network_of(view.model, "train")
    arrays = {**view.exchange.sent, **{name: torch.zeros(8) for name in ("conv1.bias", "conv2.bias", "fc.bias")}}
    with pytest.raises(ThreatModelError, match=r"needs fc\.weight, which the attacker neither has nor guesses"):
        network({name: array for name, array in arrays.items() if name != "fc.weight"}, torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("spiking", "flags", "missing", "kept"),
    [
        (False, {"biases": False}, {"sent": "conv1.bias", "received": "fc.bias"}, "norm1.bias"),
        (False, {"norm_statistics": "estimated"}, {"received": "norm1.running_var"}, "norm1.weight"),
        (False, {"norm_statistics": "unknown"}, {"sent": "norm1.running_mean"}, "norm1.weight"),
        (True, {"thresholds": False}, {"received": "act1.threshold"}, "fc.bias"),
        (True, {"norm_statistics": "estimated"}, {"received": "norm1.mean"}, "norm1.gamma"),
        (True, {"norm_statistics": "unknown"}, {"received": "norm2.var", "sent": "norm2.running_var"}, "norm1.beta"),
    ],
)
def test_denied_arrays_are_in_no_exchange(spiking, flags, missing, kept):
    full = attacked(small_cnn(norm=True), images=2, conversion=ConversionConfig(steps=4) if spiking else None).view
    view = replace(full, earlier=(full.exchange,), knowledge=replace(full.knowledge, **flags))
    for exchange in (view.exchange, *view.earlier):
        for side, name in missing.items():
            assert name in getattr(full.exchange, side)
            assert name not in getattr(exchange, side)
        assert kept in exchange.received


def test_initial_weights_hold_nothing_that_is_denied():
    full = attacked(small_cnn(norm=True), images=2).view
    known = replace(full.knowledge, biases=False, norm_statistics="unknown")
    view = replace(full, initial=full.exchange.sent, knowledge=known)
    assert "norm1.weight" in view.initial
    assert not {"conv1.bias", "norm1.running_var"} & view.initial.keys()


def test_an_s_update_without_its_statistics_is_used_by_nobody():
    victim = attacked(small_cnn(norm=True), images=1, conversion=ConversionConfig(steps=4))
    view = replace(victim.view, knowledge=replace(victim.view.knowledge, norm_statistics="estimated"))
    client = Victim(server_round=1, partition=0, view=view, truth=victim.truth)
    assert {error.source for error in bias_errors([client])} == {"as received", "zero"}
    assert plain_twin(client) is None
    spiking = (name for name in names() if "plain" not in get_attack(name).against)
    assert all(get_attack(name).refusal(view) is not None for name in spiking)


def test_an_unknown_attack_answers_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'closed_form'"):
        get_attack("closed_from")
