"""What an attacker trains on, what its success is measured on, and who attacks."""

from __future__ import annotations

import pytest
import torch

from snnfl.config import Config, ConfigError, compose
from snnfl.data import Dataset, load
from snnfl.poisoning import attackers, attacks_in, check_poisoning, forged, poisoned, scaled, triggered_test
from snnfl.workspace import Workspace


def configure(*overrides: str) -> Config:
    return compose(None, ["data.clients=5", *overrides])


def test_the_attackers_follow_from_the_seed_and_more_of_them_are_the_same_and_others() -> None:
    drawn = {
        n: attackers(configure("poisoning.attack=badnets", f"poisoning.attackers={n}", "run.seed=3")) for n in range(6)
    }
    assert drawn[0] == ()
    assert all(drawn[n] == drawn[5][:n] for n in range(6))
    assert sorted(drawn[5]) == [0, 1, 2, 3, 4]
    firsts = {attackers(configure("poisoning.attack=badnets", f"run.seed={seed}")) for seed in range(20)}
    assert len(firsts) == 5
    assert attackers(configure()) == ()
    late = configure("poisoning.attack=badnets", "poisoning.first_round=4")
    assert [attacks_in(late, server_round) for server_round in (3, 4)] == [(), attackers(late)]


@pytest.mark.parametrize(("attack", "share"), [("badnets", 0.5), ("blended", 0.25), ("label_flip", 1.0)])
def test_a_share_of_the_attackers_own_images_of_other_labels_is_poisoned(attack: str, share: float) -> None:
    given = [] if share in (0.5, 1.0) else [f"poisoning.fraction={share}"]
    config = configure(f"poisoning.attack={attack}", "poisoning.target=3", *given)
    work = Workspace(config)
    before, indices = work.dataset, work.partitions[2]
    after = poisoned(before, indices, config, partition=2)
    relabelled = (after.train_labels != before.train_labels).nonzero().flatten()
    others = int((before.train_labels[indices] != 3).sum())
    assert len(relabelled) == round(share * others)
    assert set(relabelled.tolist()) <= set(indices.tolist())
    assert bool((after.train_labels[relabelled] == 3).all())
    changed = (after.train_images != before.train_images).flatten(1).any(dim=1).nonzero().flatten()
    assert set(changed.tolist()) <= set(relabelled.tolist())
    assert len(changed) == (0 if attack == "label_flip" else len(relabelled))
    assert bool((after.test_images == before.test_images).all())
    again = poisoned(before, indices, config, partition=2)
    assert torch.equal(again.train_labels, after.train_labels)


def test_success_is_measured_on_other_labels_with_the_whole_trigger() -> None:
    config = configure(
        "poisoning.attack=distributed", "poisoning.trigger_size=3", "poisoning.attackers=5", "poisoning.target=2"
    )
    work = Workspace(config)
    tested = triggered_test(work.dataset, config)
    assert len(tested.test_labels) == int((work.dataset.test_labels != 2).sum())
    assert bool((tested.test_labels == 2).all())
    bright = (tested.test_images == 16).all(dim=0)[0]
    assert {(int(r), int(c)) for r, c in bright.nonzero()} == {(r, c) for r in (0, 3) for c in (0, 1, 2, 5, 6, 7)}
    # Each attacker trains with a quarter of it.
    for partition in attackers(config)[:4]:
        own = poisoned(work.dataset, work.partitions[partition], config, partition=partition)
        assert int((own.train_images != work.dataset.train_images).any(dim=0)[0].sum()) <= 3


@pytest.fixture
def filmed() -> Dataset:
    """Forty recordings of seven frames, in which every pixel has 2 to 9 events."""
    draw = torch.Generator().manual_seed(0)
    counts, labels = torch.randint(2, 10, (40, 7, 2, 12, 12), generator=draw).to(torch.uint8), torch.arange(40) % 4
    return Dataset(
        name="filmed",
        train_images=counts,
        train_labels=labels,
        test_images=counts,
        test_labels=labels,
        class_names=("a", "b", "c", "d"),
        mean=torch.zeros(2),
        std=torch.ones(2),
        sequence=True,
    )


def test_each_attacker_trains_with_its_own_time_slice_and_success_takes_all_of_them(filmed: Dataset) -> None:
    config = configure("poisoning.attack=event_temporal", "poisoning.attackers=3", "poisoning.target=1")
    tested = triggered_test(filmed, config)
    assert len(tested.test_labels) == 30
    assert bool((tested.test_images != filmed.test_images[filmed.test_labels != 1]).flatten(2).any(2).all())
    frames: list[int] = []
    for partition in attackers(config):
        indices = torch.arange(partition, 40, 5)
        after = poisoned(filmed, indices, config, partition=partition)
        changed = (after.train_images != filmed.train_images).flatten(2).any(2)
        own = changed.any(0).nonzero().flatten().tolist()
        (hit,) = changed.any(1).nonzero(as_tuple=True)
        assert bool(changed[hit][:, own].all())
        assert set(hit.tolist()) <= set(indices.tolist())
        assert (after.train_labels[hit] == 1).all()
        assert len(hit) == round(0.5 * int((filmed.train_labels[indices] != 1).sum())) > 0
        frames += own
    assert frames == list(range(7))


@pytest.mark.parametrize("attack", ["badnets", "blended", "distributed", "model_replacement", "label_flip"])
def test_a_pictures_poisoning_fits_recordings(filmed: Dataset, attack: str) -> None:
    config = configure(f"poisoning.attack={attack}", "poisoning.target=1")
    check_poisoning(config, filmed.input_shape, filmed.classes)
    tested = triggered_test(filmed, config)
    changed = tested.test_images != filmed.test_images[filmed.test_labels != 1]
    assert set(changed.flatten(2).any(2).flatten().tolist()) == {attack != "label_flip"}
    assert bool((tested.test_labels == 1).all())


def test_a_label_flip_with_a_source_flips_that_one_alone() -> None:
    config = configure("poisoning.attack=label_flip", "poisoning.source=7", "poisoning.target=1")
    work = Workspace(config)
    after = poisoned(work.dataset, work.partitions[0], config, partition=0)
    changed = after.train_labels != work.dataset.train_labels
    assert bool((work.dataset.train_labels[changed] == 7).all())
    assert int(changed.sum()) == int((work.dataset.train_labels[work.partitions[0]] == 7).sum()) > 0
    assert len(triggered_test(work.dataset, config).test_labels) == int((work.dataset.test_labels == 7).sum())


def test_what_only_the_data_can_tell_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"poisoning.target=10: data.source=digits has labels 0 to 9"):
        check_poisoning(configure("poisoning.attack=badnets", "poisoning.target=10"), (1, 8, 8), 10)
    with pytest.raises(ConfigError, match=r"poisoning.attack=distributed: poisoning.trigger_size=4"):
        check_poisoning(configure("poisoning.attack=distributed"), (1, 8, 8), 10)
    shape = load(configure("data.source=iris").data).input_shape
    with pytest.raises(ConfigError, match="are no images"):
        check_poisoning(configure("poisoning.attack=badnets"), shape, 3)
    check_poisoning(configure("poisoning.attack=label_flip"), shape, 3)
    with pytest.raises(
        ConfigError, match=r"^poisoning.attack=event_static: .*\[1, 8, 8\] are no recordings.*badnets"
    ) as error:
        check_poisoning(configure("poisoning.attack=event_static"), (1, 8, 8), 10)
    assert "\n" not in str(error.value)


def test_a_scaled_update_replaces_the_average() -> None:
    received = {"w": torch.tensor([1.0, -2.0]), "norm.running_var": torch.tensor([1.0])}
    trained = {"w": torch.tensor([0.0, 4.0]), "norm.running_var": torch.tensor([0.5])}
    sent = scaled(received, trained, 5.0)
    average = (sent["w"] + 4 * received["w"]) / 5
    torch.testing.assert_close(average, trained["w"])
    assert sent["norm.running_var"].item() == 0.5


def test_a_forger_changes_thresholds_alone() -> None:
    update = {"conv.weight": torch.ones(2), "relu.threshold": torch.ones(1)}
    sent = forged(update, {"conv.weight": torch.zeros(2), "relu.threshold": torch.full((1,), 7.0)})
    assert (sent["conv.weight"].tolist(), sent["relu.threshold"].tolist()) == ([1.0, 1.0], [7.0])
