from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfl import data
from snnfl.config import ConfigError, DataConfig


def test_every_documented_source_is_registered():
    documented = (
        "digits mnist fashion_mnist cifar10 cifar100 tiny_imagenet iris breast_cancer nmnist dvs128_gesture "
        "cifar10_dvs shd speech_commands audio_folder series watch basic_motions italy_power_demand japanese_vowels "
        "own"
    )
    assert set(data.names()) == set(documented.split())


@given(st.text(max_size=12).filter(lambda name: name not in data.names()))
def test_an_unknown_name_is_an_error_of_the_configuration(name):
    with pytest.raises(ConfigError) as caught:
        data.load(DataConfig(source=name))
    assert str(caught.value).startswith(f"data.source={name}: unknown data set")


def test_the_nearest_name_is_suggested():
    with pytest.raises(ConfigError, match=r"data.source=cifar: unknown data set; did you mean 'cifar10'"):
        data.check_source("cifar")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match=r"'digits' is already registered by snnfl\.data\.embedded"):
        data.register("digits")(lambda root: pytest.fail("must not be read"))


@pytest.mark.usefixtures("own_registries")
def test_a_registered_source_is_read_once_per_root(tmp_path):
    digits = data.load(DataConfig(source="digits"))
    read = []

    @data.register("mine")
    def own(root: Path) -> data.Dataset:
        read.append(root)
        return digits

    for root in (tmp_path, tmp_path / "x" / "..", tmp_path / "other", tmp_path):
        assert data.load(DataConfig(source="mine", root=str(root))) is digits
    assert read == [tmp_path, tmp_path / "other"]


@pytest.mark.parametrize("part", [0, 7])
def test_another_source_of_the_same_name_is_read_anew(part, own_registries, monkeypatch):
    """As two plug-ins of one Python session, each of whose data sets is called ``mine``."""
    digits = data.load(DataConfig())
    bright = replace(digits, train_images=digits.train_images + 1)
    config = DataConfig(source="mine", training_images=part)
    loaded = []
    for dataset in (digits, bright):
        with monkeypatch.context() as context:
            context.delitem(data.sources.SOURCES.items, "mine", raising=False)
            data.register("mine")(lambda root, dataset=dataset: dataset)
            loaded.append(data.load(config))
    assert torch.equal(loaded[0].train_images + 1, loaded[1].train_images)


def test_the_root_is_the_configured_one_then_the_environment_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SNNFL_DATA", str(tmp_path / "environment"))
    assert data.data_root("~/mine") == tmp_path / "mine"
    assert data.data_root(None) == tmp_path / "environment"
    for unset in (lambda: monkeypatch.setenv("SNNFL_DATA", ""), lambda: monkeypatch.delenv("SNNFL_DATA")):
        unset()
        assert data.data_root(None) == tmp_path / ".cache" / "snnfl"


@pytest.mark.usefixtures("own_registries")
def test_a_source_gets_the_options_that_it_uses_and_is_read_once_for_each(tmp_path):
    digits = data.load(DataConfig(source="digits"))
    read = []

    @data.register("binned", uses=("time_bins",))
    def binned(root: Path, config: DataConfig) -> data.Dataset:
        read.append((root, config))
        return replace(digits, users=torch.arange(len(digits.train_labels)))

    for bins in (3, None, 3):
        data.load(DataConfig(source="binned", root=str(tmp_path), time_bins=bins, clients=7))
    assert read == [(tmp_path, DataConfig(source="binned", time_bins=bins)) for bins in (3, None)]


@pytest.mark.parametrize(
    "changes", [{"time_bins": 5}, {"binning": "count"}, {"resolution": 4}, {"filters": "cochlear"}, {"folder": "x"}]
)
def test_an_option_that_the_source_does_not_use_is_refused(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ConfigError, match=rf"data.{name}={value}: only .*, .* use it, and data.source=digits; leave"):
        data.load(DataConfig(source="digits", **changes))


def test_a_source_that_uses_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"'x' uses 'clients', which is none of folder, time_bins"):
        data.register("x", uses=("clients",))


@pytest.mark.usefixtures("own_registries")
def test_a_part_keeps_the_user_of_each_example():
    digits = data.load(DataConfig(source="digits"))
    whole = replace(digits, name="owned", users=digits.train_labels * 2)
    data.register("owned")(lambda root: whole)
    part = data.load(DataConfig(source="owned", training_images=40))
    assert torch.equal(part.users, part.train_labels * 2)


def examples(dataset, split):
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    return Counter((image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


@settings(max_examples=20, deadline=None)
@given(training=st.integers(0, 1400), test=st.integers(0, 350))
def test_a_part_holds_so_many_different_images_each_with_its_label(training, test):
    whole = data.load(DataConfig(source="digits"))
    part = data.load(DataConfig(source="digits", training_images=training, test_images=test))
    for split, count in (("train", training), ("test", test)):
        ours, theirs = examples(part, split), examples(whole, split)
        assert ours.total() == (count or theirs.total())
        assert ours <= theirs


def test_a_part_is_the_same_each_time_begins_every_larger_one_and_mixes_the_classes():
    half, whole = (data.load(DataConfig(source="digits", training_images=n)) for n in (300, 600))
    assert data.load(DataConfig(source="digits", training_images=300)) is half
    assert torch.equal(half.train_images, whole.train_images[:300])
    assert torch.bincount(half.train_labels, minlength=10).min() > 10


@pytest.mark.parametrize("split", ["training", "test"])
def test_more_images_than_there_are_is_an_error(split):
    with pytest.raises(ConfigError, match=rf"data.{split}_images=99999: digits has \d+; take fewer, or 0 for all"):
        data.load(DataConfig(source="digits", **{f"{split}_images": 99999}))
