from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnfl import data
from snnfl.config import ConfigError, DataConfig
from snnfl.data import sources


def test_every_documented_source_is_registered():
    documented = "digits mnist fashion_mnist cifar10 cifar100 tiny_imagenet iris breast_cancer"
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
    with pytest.raises(ValueError, match="'digits' is registered already"):
        data.register("digits")(lambda root: pytest.fail("must not be read"))


def test_a_registered_source_is_read_once_per_root(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "_SOURCES", dict(sources._SOURCES))
    digits = data.load(DataConfig(source="digits"))
    read = []

    @data.register("own")
    def own(root: Path) -> data.Dataset:
        read.append(root)
        return digits

    for root in (tmp_path, tmp_path / "x" / "..", tmp_path / "other", tmp_path):
        assert data.load(DataConfig(source="own", root=str(root))) is digits
    assert read == [tmp_path, tmp_path / "other"]


def test_the_root_is_the_configured_one_then_the_environment_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SNNFL_DATA", str(tmp_path / "environment"))
    assert data.data_root("~/mine") == tmp_path / "mine"
    assert data.data_root(None) == tmp_path / "environment"
    for unset in (lambda: monkeypatch.setenv("SNNFL_DATA", ""), lambda: monkeypatch.delenv("SNNFL_DATA")):
        unset()
        assert data.data_root(None) == tmp_path / ".cache" / "snnfl"
