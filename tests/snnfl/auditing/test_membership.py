"""Membership attacks on real networks: they find what is there, nothing where nothing is, and never see the truth."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from membership_trials import CANDIDATES, NOBODY, digits, trained, trials
from torch import Tensor

from snnfl import rng
from snnfl.auditing.membership import Trained, Trials, drawn_members, drawn_overlap, run_attacks
from snnfl.auditing.membership_networks import trials_of_networks
from snnfl.auditing.membership_scores import gaps, results, scorecard
from snnfl.config import ConfigError
from snnfl.membership_attacks import MEMBERSHIP_ATTACKS
from snnfl.membership_attacks.signals import measure
from snnfl.threat import MembershipKnowledge, MembershipView

ROOT = Path(__file__).parents[3]
REALISTIC = [attack.name for attack in MEMBERSHIP_ATTACKS if attack.setting == "realistic"]


def with_other_members(given: Trials, seed: int) -> Trials:
    """Say of every network that it was trained on others than it was."""
    networks = []
    for number, network in enumerate(given.networks):
        members = drawn_members(seed, CANDIDATES, number)
        most = drawn_overlap(seed, members, number)
        assert network.overlap is not None
        overlap = replace(network.overlap, members=most, used=most | ~members)
        networks.append(replace(network, members=members, overlap=overlap))
    assert given.disjoint is not None
    disjoint = replace(given.disjoint, members=drawn_members(seed, NOBODY, 0, "disjoint"))
    return replace(given, networks=networks, disjoint=disjoint)


def by_name(given: Trials, names: list[str] | None = None) -> dict[str, dict[str, Any]]:
    return {entry["attack"]: entry for entry in scorecard(given, run_attacks(given, names or []))}


def inside(interval: dict[str, float], value: float) -> bool:
    return interval["low"] <= value <= interval["high"]


def test_every_attack_finds_something_in_networks_that_know_their_samples_by_heart() -> None:
    found = by_name(trials())
    assert gaps(trials())["gap"]["low"] > 0.03
    for name in ("loss", "attack_p", "attack_r", "lira_online", "lira_offline", "rmia", "rmia_online"):
        assert found[name]["verdict"] == "leaks", name
    assert found["quantile"]["auc"]["low"] > 0.5  # of its verdict decides a tail, which networks of one processor miss
    assert found["rmia"]["auc"]["value"] > found["loss"]["auc"]["value"]
    assert found["best"]["auc"]["value"] > 0.65
    assert all(entry["verdict"] in ("leaks", "unclear") for entry in found.values())


def test_random_membership_is_chance_for_every_attack() -> None:
    """AUC, TPR and balanced accuracy of members who were drawn after the networks had been trained."""
    found = by_name(with_other_members(trials(), 1), REALISTIC)
    for name, entry in found.items():
        assert entry["verdict"] == "unclear", name
    held = [inside(entry["auc"], 0.5) for entry in found.values()]
    assert sum(held) >= len(held) - 1  # at 95 %


def test_the_published_protocol_finds_members_where_there_are_none_and_its_control_says_so() -> None:
    """Its classifier learns the very samples that it is tried on: shadow members are target members."""
    found = by_name(with_other_members(trials(), 1), ["paper", "paper_per_class"])
    for name in ("paper", "paper_per_class"):
        assert found[name]["setting"] == "diagnostic"
        assert found[name]["auc"]["low"] > 0.5
        assert found[name]["control"]["low"] > 0.5
    assert "control" not in by_name(trials(), ["rmia"])["rmia"]


def test_a_memorising_network_gives_almost_all_members_away() -> None:
    """Labels by lot can only be known by heart."""
    data = digits()
    lot = torch.randint(10, (CANDIDATES,), generator=rng.generator(0, "lot"))
    data = replace(data, train_labels=lot)
    inputs, of_nobody = data.normalise(data.train_images), data.normalise(data.test_images)
    networks = []
    for number in range(3):
        members = drawn_members(0, CANDIDATES, number)
        network = trained(data, members, number, spiking=False, epochs=40)
        networks.append(
            Trained(signals=measure(network, inputs), members=members, population=measure(network, of_nobody))
        )
    nobody = of_nobody, torch.randint(10, (NOBODY,), generator=rng.generator(1, "lot"))
    given = Trials(inputs=inputs, labels=lot, networks=networks, nobody=nobody)
    found = by_name(given, ["loss", "attack_p", "attack_r", "lira_offline", "rmia", "rmia_online"])
    for name in ("loss", "attack_p", "lira_offline", "rmia", "rmia_online"):
        assert found[name]["auc"]["value"] > 0.95, name
    assert min(found["rmia"]["values"]["tpr_at_1"]) > 0.5


def tensors(thing: object, where: str = "view") -> Iterator[tuple[str, Tensor]]:
    if isinstance(thing, Tensor):
        yield where, thing
    elif is_dataclass(thing) and not isinstance(thing, type):
        for item in fields(thing):
            yield from tensors(getattr(thing, item.name), f"{where}.{item.name}")
    elif isinstance(thing, (list, tuple)):
        for number, each in enumerate(thing):
            yield from tensors(each, f"{where}[{number}]")


@pytest.mark.parametrize("attack", list(MEMBERSHIP_ATTACKS), ids=lambda attack: attack.name)
def test_no_attack_is_given_who_was_in(attack: Any) -> None:
    """No bits that it sees tell more of the target's members than chance, but for the diagnosis that is told so."""
    given = trials()
    seen: list[MembershipView] = []

    def looks(view: MembershipView, draw: torch.Generator) -> Tensor:
        seen.append(view)
        return torch.zeros(CANDIDATES)

    spy = replace(attack, score=looks)
    for target in given.attacked:
        spy.run(given.view(target), rng.generator(0, "spy"))
        truth = given.networks[target].members
        bits = {name: each for name, each in tensors(seen[-1]) if each.dtype == torch.bool and len(each) == CANDIDATES}
        told = [name for name, each in bits.items() if abs((each == truth).double().mean() - 0.5) > 0.1]
        assert bool(told) == (attack.setting == "diagnostic"), told
        together = [each for name, each in bits.items() if ".shadows" in name]
        if together:  # were every sample in half of all networks, the shadows' number would tell the target's bit
            number = torch.stack(together).sum(0).double()
            assert abs(torch.corrcoef(torch.stack([number, truth.double()]))[0, 1]) < 0.15
    assert len(seen) == len(given.attacked)


def test_scores_do_not_depend_on_the_targets_members() -> None:
    """Exchanging the truth changes no realistic attack's score of the target, for it cannot be read."""
    given = trials()
    lied = replace(given.networks[0], members=~given.networks[0].members)
    other = replace(given, networks=[lied, *given.networks[1:]], targets=[0])
    names = [name for name in REALISTIC if name != "svm_counts"]
    before, after = run_attacks(replace(given, targets=[0]), names), run_attacks(other, names)
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one.scores[0], two.scores[0]), one.attack.name


def test_attack_code_does_not_import_the_truth() -> None:
    for room in ("membership_attacks", "threat"):
        for path in (ROOT / "snnfl" / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert not (node.module or "").startswith("snnfl.auditing"), path


@pytest.mark.parametrize("attack", list(MEMBERSHIP_ATTACKS), ids=lambda attack: attack.name)
def test_a_denied_fact_refuses_in_one_line(attack: Any) -> None:
    for fact in sorted(attack.needs):
        (finding,) = run_attacks(
            replace(trials(), knowledge=MembershipKnowledge().without([fact]), targets=[0]), [attack.name]
        )
        assert finding.refused
        assert finding.reason == f"{attack.name}: needs {fact}, which the threat model denies"


@pytest.mark.parametrize(
    ("change", "attack", "reason"),
    [
        ({"nobody": None}, "rmia", "rmia: there are no samples that nobody trained on"),
        ({"disjoint": None}, "svm_logits", "svm_logits: no shadow was trained on samples that the target doesn't know"),
    ],
)
def test_what_is_not_there_refuses_in_one_line(change: dict[str, Any], attack: str, reason: str) -> None:
    (finding,) = run_attacks(replace(trials(), **change), [attack])
    assert finding.reason == reason
    (entry,) = scorecard(trials(), [finding])
    assert entry["verdict"] == "refused"


@pytest.mark.parametrize("name", ["inputs", "labels", "members"])
def test_arrays_that_are_no_tensors_are_one_line(name: str) -> None:
    given: dict[str, Any] = {
        "inputs": torch.zeros(4, 2),
        "labels": torch.tensor([0, 1, 0, 1]),
        "members": torch.tensor([[True, False, True, False]]),
    }
    with pytest.raises(ConfigError, match=f"{name}: expected a torch.Tensor, found ndarray"):
        trials_of_networks([torch.nn.Linear(2, 2)], **{**given, name: given[name].numpy()})


def test_hidden_spikes_of_an_ordinary_network_are_refused() -> None:
    given = trials()
    plain = [replace(each, signals=replace(each.signals, counts=None, timing=None)) for each in given.networks]
    (finding,) = run_attacks(replace(given, networks=plain), ["svm_counts"])
    assert "only spiking networks have them" in finding.reason


def test_results_are_json_and_complete() -> None:
    import json

    given = trials()
    found = json.loads(json.dumps(results(given, run_attacks(given, ["loss", "rmia"])), allow_nan=False))
    assert [entry["attack"] for entry in found["entries"]] == ["loss", "rmia", "best"]
    assert inside(found["blind"], 0.5)
    assert found["networks"] == found["targets"] == 4
    assert found["candidates"] == CANDIDATES
    grid, curve = found["roc"]["rmia"]
    assert len(grid) == len(curve)
    assert curve == sorted(curve)
    one = json.loads(
        json.dumps(results(replace(given, targets=[0]), run_attacks(replace(given, targets=[0]), ["loss"])))
    )
    assert one["gaps"]["gap"]["low"] is None
    assert one["entries"][0]["auc"]["low"] is not None
