"""Code that a user registers fails in one line; ours keeps its traceback."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from snnfl import data
from snnfl.config import ConfigError, DataConfig, ModelConfig, compose
from snnfl.data import sources
from snnfl.models import MODELS, build_model, register
from snnfl.poisoning import POISONINGS, Poisoning, trigger
from snnfl.workspace import Workspace
from strategies.bases import STRATEGIES, build_base
from strategies.bases import register as strategy


def build(name: str) -> nn.Module:
    return build_model(ModelConfig(name=name), input_shape=(1, 8, 8), classes=3, generator=torch.Generator())


def test_a_model_that_fails_is_one_line_with_its_line(own_registries: None) -> None:
    @register("raises")
    def raises(config: Any, input_shape: Any, classes: int) -> nn.Module:
        raise KeyError("oops")

    @register("nothing")
    def nothing(config: Any, input_shape: Any, classes: int) -> Any:
        return None

    @register("unfit")
    def unfit(config: Any, input_shape: Any, classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(5, classes))

    with pytest.raises(ConfigError, match=r"^model.name=raises: KeyError: 'oops' \(test_registry.py, line \d+\)$"):
        build("raises")
    with pytest.raises(ConfigError, match=r"^model.name=nothing: it returned NoneType, expected Module$"):
        build("nothing")
    with pytest.raises(ConfigError, match=r"^model.name=unfit: RuntimeError: mat1 and mat2 shapes"):
        Workspace(compose(None, ["model.name=unfit"])).check_batches()


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.items, "mlp", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build("mlp")


def test_the_other_kinds_fail_likewise(own_registries: None) -> None:
    @strategy("broken", kind="mean")
    def broken(config: Any) -> Any:
        raise ValueError("strategy boom")

    @sources.register("empty")
    def empty(root: Any) -> Any:
        return None

    @sources.register("lost")
    def lost(root: Any) -> Any:
        raise FileNotFoundError("my file is missing")

    def boom(*arguments: Any) -> Any:
        raise ValueError("poison boom")

    POISONINGS.add("boom", Poisoning(name="boom", source="here", trigger=boom), home=__name__)
    for name, make, words in (
        (
            "strategy.name=broken",
            lambda: build_base(compose(None, ["strategy.name=broken"])),
            "strategy boom",
        ),
        ("data.source=empty", lambda: data.load(DataConfig(source="empty")), "it returned NoneType, expected Dataset"),
        ("data.source=lost", lambda: data.load(DataConfig(source="lost")), "my file is missing"),
        ("poisoning.attack=boom", lambda: trigger(compose(None, ["poisoning.attack=boom"]), (1, 8, 8)), "poison boom"),
    ):
        with pytest.raises(ConfigError, match=rf"^{name}: .*{words}"):
            make()
    assert "broken" in STRATEGIES.names()
