"""Sections ``poisoning`` and ``detection``: what fits together survives every format, what doesn't is one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from snnfl.config import ConfigError, PoisoningConfig, compose, flatten, to_yaml, unflatten
from snnfl.config.checks import BUILT_IN
from snnfl.poisoning import Attacker, attackers, check_poisoning, names, register, trigger

VALID = [
    ["poisoning.attack=badnets", "poisoning.attackers=0", "poisoning.trigger_size=1"],
    ["poisoning.attack=blended", "poisoning.strength=0.1", "poisoning.fraction=0.3", "poisoning.target=7"],
    ["poisoning.attack=distributed", "poisoning.trigger_size=3", "poisoning.attackers=4"],
    ["poisoning.attack=label_flip", "poisoning.source=5", "poisoning.first_round=10", "strategy.spiking=false"],
    ["poisoning.attack=model_replacement", "poisoning.scale=2.5", "poisoning.forge_thresholds=true"],
    ["poisoning.attack=model_replacement", "poisoning.scale_ann=true"],
    ["poisoning.attack=event_static", "poisoning.polarity=both", "poisoning.trigger_size=2"],
    ["poisoning.attack=event_temporal", "poisoning.strength=0.5", "poisoning.attackers=5"],
    ["detection.detectors=[norm,krum]", "detection.exclude=krum"],
]

INVALID = [
    (["poisoning.attackers=2"], "only an attack uses it"),
    (["poisoning.forge_thresholds=true"], "only an attack uses it"),
    (["poisoning.attack=badnets", "poisoning.strength=0.5"], "only blended or event_moving or event_static or event_"),
    (["poisoning.attack=blended", "poisoning.trigger_size=2"], "only badnets or distributed or event"),
    (["poisoning.attack=badnets", "poisoning.polarity=both"], "only event_moving or event_static or event_temporal"),
    (["poisoning.attack=event_moving", "poisoning.source=5"], "only label_flip uses it"),
    (["poisoning.attack=event_static", "poisoning.polarity=on"], "poisoning.polarity="),
    (["poisoning.attack=badnets", "poisoning.scale=2"], "only model_replacement uses it"),
    (["poisoning.attack=badnets", "poisoning.scale_ann=true"], "only model_replacement uses it"),
    (["poisoning.attack=model_replacement", "poisoning.scale_ann=true", "strategy.spiking=false"], "converts nothing"),
    (["poisoning.attack=badnets", "poisoning.source=2"], "only label_flip uses it"),
    (["poisoning.attack=badnets", "poisoning.attackers=11"], "at most data.clients=10"),
    (["poisoning.attack=badnets", "poisoning.first_round=11"], "at most run.rounds=10"),
    (["poisoning.attack=badnets", "poisoning.fraction=0"], "more than 0"),
    (["poisoning.attack=label_flip", "poisoning.source=0"], "is poisoning.target too"),
    (["poisoning.attack=badnets", "poisoning.forge_thresholds=true", "strategy.spiking=false"], "upload no thresholds"),
    (["poisoning.attack=badnets", "strategy.name=solo"], "sends no update to poison"),
    (["detection.detectors=[norm]", "strategy.name=solo"], "sends no update to judge"),
    (["detection.exclude=norm"], "not among detection.detectors"),
    (["detection.detectors=[norm]", "detection.exclude=norm", "privacy.mechanism=central"], "privacy.mechanism"),
    (["detection.detectors=norm"], "a list of names"),
]


@pytest.mark.parametrize("overrides", VALID, ids=" ".join)
def test_what_fits_together_survives_every_format(tmp_path: Path, overrides: list[str]) -> None:
    config = compose(None, overrides)
    assert config != compose()
    assert unflatten(flatten(config)) == config
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert compose(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(("overrides", "words"), INVALID, ids=lambda value: value if isinstance(value, str) else "")
def test_what_makes_no_sense_is_refused_in_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose(None, overrides)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_poisoning_is_answered_with_the_nearest_name() -> None:
    config = compose(None, ["poisoning.attack=badnet"])
    with pytest.raises(ConfigError, match=r"poisoning\.attack=badnet: unknown poisoning; did you mean 'badnets'\?"):
        check_poisoning(config, (1, 8, 8), 10)


def test_a_poisoning_of_ones_own_may_use_every_option(own_registries: None) -> None:
    seen: list[tuple[float | None, int | None]] = []

    @register("mine", source="this test", fraction=0.25)
    def mine(options: PoisoningConfig, shape: Sequence[int], attacker: Attacker) -> None:
        seen.append((options.strength, attacker.number))

    config = compose(None, ["poisoning.attack=mine", "poisoning.strength=0.5", "poisoning.attackers=2"])
    trigger(config, (1, 8, 8))
    trigger(config, (1, 8, 8), partition=attackers(config)[1])
    assert seen == [(0.5, None), (0.5, 1)]


def test_what_is_built_in_is_known_to_the_configuration() -> None:
    assert names() == BUILT_IN
