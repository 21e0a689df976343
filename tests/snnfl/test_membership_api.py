"""``snnfl.membership``: the suite on a user's own networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snnfl
from snnfl import rng
from snnfl.auditing.membership import drawn_members

N, M, FEATURES, CLASSES = 200, 100, 8, 4


def own(networks: int = 3, epochs: int = 200) -> dict[str, Any]:
    """Train networks that know labels by lot, with nothing of snnfl."""
    draw = rng.generator(0, "own")
    inputs, labels = torch.randn(N, FEATURES, generator=draw), torch.randint(CLASSES, (N,), generator=draw)
    nobody = torch.randn(M, FEATURES, generator=draw), torch.randint(CLASSES, (M,), generator=draw)
    members, trained = torch.stack([drawn_members(0, N, k) for k in range(networks)]), []
    for own_members in members:
        network = nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, CLASSES))
        optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(epochs):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs[own_members]), labels[own_members])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        trained.append(network)
    return {"networks": trained, "inputs": inputs, "labels": labels, "members": members, "nobody": nobody}


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    return own()


def test_it_finds_who_was_in_and_writes_a_report(given: dict[str, Any], tmp_path: Path) -> None:
    found = snnfl.membership(**given, output=tmp_path / "asked")
    by_name = {entry["attack"]: entry for entry in found.entries}
    assert by_name["rmia"]["verdict"] == "leaks"
    assert by_name["loss"]["auc"]["value"] > 0.9
    assert found.gap["value"] > 0.4
    assert found.blind["low"] <= 0.5
    assert "the best attack" in repr(found)
    assert json.loads((tmp_path / "asked" / "results.json").read_text())[0]["networks"] == 3
    assert "report.html" in {path.name for path in (tmp_path / "asked").iterdir()}
    assert found.path == tmp_path / "asked"


def test_one_network_without_shadows_is_asked_what_it_can_be(given: dict[str, Any]) -> None:
    one = {**given, "networks": given["networks"][:1], "members": given["members"][:1]}
    found = snnfl.membership(**one)
    verdicts = {entry["attack"]: entry["verdict"] for entry in found.entries}
    assert verdicts["loss"] == verdicts["quantile"] == "leaks"
    assert verdicts["rmia"] == verdicts["lira_online"] == "refused"


def test_networks_are_left_as_they_were(given: dict[str, Any]) -> None:
    given["networks"][0].train()
    snnfl.membership(**given, attacks=["loss"])
    assert given["networks"][0].training


def test_the_function_stays_one_when_its_room_is_imported() -> None:
    import snnfl.membership_attacks

    assert callable(snnfl.membership)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": torch.ones(2, N, dtype=torch.bool)}, r"members of shape \[2, 200\]: expected \[3, 200\]"),
        ({"members": torch.ones(3, N, dtype=torch.bool)}, r"members\[0\]: every sample is a member"),
        ({"labels": torch.zeros(3)}, "labels of shape"),
        ({"networks": [1, 2, 3]}, r"networks\[0\]: expected a torch.nn.Module, found int"),
        ({"networks": []}, "give at least one trained network"),
        ({"targets": [5]}, "there is no network 5"),
        ({"attacks": ["rnia"]}, "did you mean 'rmia'"),
        ({"deny": ["label"]}, "did you mean 'labels'"),
        ({"attacks": "rmia"}, r"attacks=rmia: expected a list of names, such as \['rmia'\]"),
        ({"deny": "labels"}, r"deny=labels: expected a list of names, such as \['labels'\]"),
        ({"networks": nn.Sequential(nn.Linear(FEATURES, CLASSES))}, "networks: expected a list of networks"),
        ({"labels": torch.full((N,), 99)}, r"labels: 99 is none of the \d+ classes that networks\[0\] has"),
        ({"inputs": torch.zeros(N, FEATURES + 1)}, r"networks\[0\] fails on inputs of shape \[2, \d+\] \(RuntimeError"),
        ({"inputs": torch.full((N, FEATURES), torch.nan)}, "no finite number"),
    ],
)
def test_a_mistake_is_one_line(given: dict[str, Any], change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(snnfl.ConfigError, match=message) as error:
        snnfl.membership(**{**given, **change})
    assert "\n" not in str(error.value)


def test_shadows_that_know_the_targets_members_are_refused(given: dict[str, Any]) -> None:
    first, second = given["members"][:2]
    with pytest.raises(snnfl.ConfigError, match=r"members\[2\] are members\[0\], so that shadows give"):
        snnfl.membership(**{**given, "members": torch.stack([first, second, first])}, attacks=["loss"])
    with pytest.raises(snnfl.ConfigError, match=r"members\[2\] are all but members\[0\]"):
        snnfl.membership(**{**given, "members": torch.stack([first, second, ~first])}, attacks=["loss"])
    beside = torch.stack([first, second, second])  # the others' are their own affair where one target is asked
    assert snnfl.membership(**{**given, "members": beside}, attacks=["loss"], targets=[0]).entries


def test_samples_of_nobody_that_networks_were_trained_on_are_refused(given: dict[str, Any]) -> None:
    inputs, labels = given["inputs"], given["labels"]
    with pytest.raises(snnfl.ConfigError, match="200 of its 200 samples are among inputs"):
        snnfl.membership(**{**given, "nobody": (inputs, labels)}, attacks=["attack_p"])
    others, their_labels = given["nobody"]  # one that is there twice is no mistake
    nobody = torch.cat([others, inputs[:1]]), torch.cat([their_labels, labels[:1]])
    assert snnfl.membership(**{**given, "nobody": nobody}, attacks=["attack_p"]).entries
