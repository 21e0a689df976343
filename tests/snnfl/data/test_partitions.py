import re
import subprocess
import sys
import time
import warnings

import datasets
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfl import data, rng
from snnfl.config import ConfigError, DataConfig
from snnfl.data import dirichlet

KINDS = ["iid", "dirichlet", "dirichlet_balanced", "quantity", "pathological"]
LABELS = torch.arange(600) % 6


@pytest.fixture(autouse=True, scope="module")
def _few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dirichlet, "MAXIMUM_DRAWS", 50)
        yield


def assert_disjoint_and_complete(parts, count):
    assert all(part.dtype == torch.int64 for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(count))


def attempt(labels, config, seed):
    try:
        return data.partition(labels, config, seed), ""
    except ConfigError as error:
        return (), str(error)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.integers(1, 200).map(lambda count: torch.randint(6, (count,), generator=rng.generator(count, "labels"))),
    config=st.builds(
        DataConfig,
        clients=st.integers(1, 12),
        partition=st.sampled_from(KINDS),
        beta=st.floats(0.1, 1e3),
        classes_per_client=st.integers(1, 6),
        minimum_samples=st.integers(1, 4),
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_partitions_are_disjoint_complete_reproducible_and_large_enough_or_an_error(labels, config, seed):
    parts, error = attempt(labels, config, seed)
    if error:
        assert re.fullmatch(r"data\..*; take .*", error)  # one line, since a dot matches no line break
        return
    assert len(parts) == config.clients
    assert_disjoint_and_complete(parts, len(labels))
    assert min(map(len, parts)) >= config.minimum_samples
    assert all(torch.equal(*pair) for pair in zip(parts, data.partition(labels, config, seed), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_is_another_partition(kind):
    config = DataConfig(partition=kind, clients=6, beta=5.0)
    first, second = (data.partition(LABELS, config, seed) for seed in (0, 1))
    assert any(not torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_iid_is_what_flowers_partitioner_makes_of_shuffled_rows():
    shuffled = torch.randperm(600, generator=rng.generator(3, "partition order"))
    partitioner = IidPartitioner(7)
    partitioner.dataset = datasets.Dataset.from_dict({"row": shuffled.tolist()})
    for client, part in enumerate(data.partition(LABELS, DataConfig(clients=7), 3)):
        assert part.tolist() == sorted(partitioner.load_partition(client)["row"])


def test_quantities_have_the_moments_of_the_dirichlet():
    clients, beta, draws = 5, 2.0, 400
    config = DataConfig(partition="quantity", clients=clients, beta=beta, minimum_samples=1)
    labels = torch.zeros(20_000, dtype=torch.int64)
    sizes = [[len(part) for part in data.partition(labels, config, seed)] for seed in range(draws)]
    shares = torch.tensor(sizes) / len(labels)
    variance = (1 / clients) * (1 - 1 / clients) / (clients * beta + 1)
    assert shares.mean(0).tolist() == pytest.approx([1 / clients] * clients, abs=5 * (variance / draws) ** 0.5)
    assert shares.var(0).mean().item() == pytest.approx(variance, rel=0.15)


def test_quantity_leaves_the_labels_mixed():
    config = DataConfig(partition="quantity", clients=3, beta=5.0)
    counts = data.label_counts(LABELS, data.partition(LABELS, config, 0), 6)
    shares = counts / counts.sum(1, keepdim=True)
    assert (shares - 1 / 6).abs().max() < 0.1


@pytest.mark.parametrize("classes_per_client", [1, 2, 6])
def test_pathological_clients_have_so_many_classes(classes_per_client):
    config = DataConfig(partition="pathological", clients=12, classes_per_client=classes_per_client)
    parts = data.partition(LABELS, config, 5)
    counts = data.label_counts(LABELS, parts, 6)
    assert ((counts > 0).sum(1) == classes_per_client).all()
    assert (counts[torch.arange(12), torch.arange(12) % 6] > 0).all()
    for label in range(6):
        shares = counts[:, label][counts[:, label] > 0]
        assert shares.max() - shares.min() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 100}, r"data.clients=100: .* need 1000 .* there are 600, .* at most 6; take fewer clients"),
        *(
            ({"partition": kind, "beta": 0.001}, r"data.minimum_samples=10: none of 50 draws with data.beta=0.001 ")
            for kind in ("quantity", "dirichlet", "dirichlet_balanced")
        ),
        ({"partition": "pathological", "classes_per_client": 7}, "classes_per_client=7: there are only 6 classes"),
        ({"partition": "pathological", "clients": 2}, r"nobody has the classes \[.*\]; take at least 6 clients"),
        (
            {"partition": "pathological", "clients": 300, "classes_per_client": 6, "minimum_samples": 1},
            "more clients than samples .the rarest has 100.",
        ),
        (
            {"partition": "pathological", "clients": 23, "classes_per_client": 1, "minimum_samples": 26},
            r"client \d+, the smallest, would have 25 training samples; take fewer clients",
        ),
    ],
)
def test_an_impossible_partition_names_the_value_and_the_way_out(changes, message):
    with pytest.raises(ConfigError, match=message):
        data.partition(LABELS, DataConfig(**changes), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_printed_and_nobody_is_warned(kind, capfd):
    with warnings.catch_warnings(record=True) as caught:
        for changes in ({"clients": 6}, {"clients": 2}, {"clients": 6, "minimum_samples": 90}):
            attempt(LABELS, DataConfig(partition=kind, beta=0.3, **changes), 0)
    assert not caught
    assert capfd.readouterr() == ("", "")


def test_ten_thousand_clients_are_feasible():
    start = time.process_time()
    parts = data.partition(torch.arange(60_000) % 10, DataConfig(clients=10_000, minimum_samples=6), 0)
    assert time.process_time() - start < 3
    assert_disjoint_and_complete(parts, 60_000)


def test_flower_datasets_is_imported_only_when_it_is_used():
    code = (
        "import sys, torch, snnfl.data as data; from snnfl.config import DataConfig;"
        "data.partition(torch.zeros(100, dtype=torch.int64), DataConfig(), 0);"
        "assert not {'datasets', 'flwr_datasets', 'torchvision', 'sklearn'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_label_counts_count():
    labels = torch.tensor([0, 2, 2, 1, 0])
    counts = data.label_counts(labels, [torch.tensor([0, 1, 2]), torch.tensor([3, 4])], 4)
    assert counts.tolist() == [[1, 0, 2, 0], [1, 1, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(
    users=st.lists(st.integers(-5, 2**40), min_size=1, max_size=80),
    clients=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_natural_partition_leaves_users_whole(users, clients, seed):
    config = DataConfig(partition="natural", clients=clients, minimum_samples=1)
    labels, known = torch.zeros(len(users), dtype=torch.int64), sorted(set(users))
    owners = torch.tensor(users)
    if clients > len(known):
        with pytest.raises(ConfigError, match=rf"^data.clients={clients}: .*; take (at most|fewer)"):
            data.partition(labels, config, seed, owners)
        return
    parts = data.partition(labels, config, seed, owners)
    assert_disjoint_and_complete(parts, len(users))
    for client, part in enumerate(parts):
        assert torch.equal(part, part.sort().values)
        assert set(owners[part].tolist()) == set(known[client::clients])


def test_a_natural_partition_of_data_without_users_names_the_way_out():
    with pytest.raises(ConfigError, match=r"data.partition=natural: data.source=digits doesn't say .*dirichlet"):
        data.partition(LABELS, DataConfig(partition="natural"), 0)


def test_a_user_with_too_few_samples_is_an_error():
    users = torch.tensor([0] * 30 + [1] * 3)
    with pytest.raises(ConfigError, match=r"data.minimum_samples=10: client 1, the smallest, would have 3"):
        data.partition(torch.zeros(33, dtype=torch.int64), DataConfig(partition="natural", clients=2), 0, users)
