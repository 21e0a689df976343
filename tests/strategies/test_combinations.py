"""Options that make no sense together are refused with the reason; what is doubtful is said."""

from __future__ import annotations

import pytest
from flwr.serverapp.strategy import FedAvg

from snnfl.config import ConfigError, compose
from strategies.bases import STRATEGIES
from strategies.combinations import build_checked, minimum_replies

DP = "privacy.mechanism=central"
SGD = ["privacy.mechanism=example", "strategy.spiking=false", "model.batch_norm=false"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.name=solo", "strategy.fraction_train=0.5"], r"strategy.fraction_train=0.5: .*solo.*train alone"),
        (["strategy.name=solo", "strategy.participation=0.5"], r"strategy.participation=0.5: .*doesn't communicate"),
        (["strategy.name=solo", "strategy.fraction_evaluate=1"], r"strategy.fraction_evaluate=1.0: .*receive no model"),
        (
            ["strategy.name=solo", "strategy.bias_back=true"],
            r"strategy.bias_back=True: .*nothing comes back.*set False",
        ),
        (
            ["strategy.name=solo", "audit.record=true"],
            r"audit.record=True: with strategy.name=solo no weight leaves a client, so .* nothing to attack; set False",
        ),
        (["strategy.name=solo", DP], r"privacy.mechanism=central: strategy.name=solo sends no update"),
        (["strategy.name=solo", "strategy.q=1"], r"strategy.q=1.0: .* only qfedavg"),
        (["strategy.name=fedbn"], r"strategy.spiking=True: .*fedbn, for an S-update's weights are folded .*set False"),
        (
            ["strategy.name=fedbn", "strategy.spiking=false", "audit.record=true"],
            r"audit.record=True: strategy.name=fedbn keeps batch normalisation on the clients.*set False",
        ),
        (
            ["strategy.name=scaffold", DP, "strategy.spiking=false"],
            r"privacy.mechanism=central: strategy.name=scaffold .* which nobody clips or noises; set none",
        ),
        (
            ["strategy.name=scaffold", "strategy.bias_back=true"],
            r"strategy.bias_back=True: strategy.name=scaffold would send the control variates of biases.*set False",
        ),
        (
            ["strategy.name=scaffold", "audit.record=true"],
            r"audit.record=True: strategy.name=scaffold corrects the clients' gradients.*set False",
        ),
        (
            ["strategy.name=scaffold", "training.optimizer=adam"],
            r"training.optimizer=adam: strategy.name=scaffold .* from the steps of SGD; set sgd",
        ),
        (["strategy.name=fednova", "training.optimizer=adamw"], r"training.optimizer=adamw: .*fednova .*; set sgd"),
        (["strategy.name=scaffold", "training.clip_norm=1"], r"training.clip_norm=1.0: .*scaffold .*; set null"),
        (["strategy.name=fedlec", "training.micro_batch=8"], r"training.micro_batch=8: .*fedlec .*; set null"),
        (["strategy.name=krum", "data.clients=4"], r"krum: needs 5 updates per round with malicious_clients=1, but 4 "),
        (["strategy.name=bulyan", "strategy.fraction_train=0.6"], r"bulyan: needs 7 .* but 6 clients are selected"),
        (["strategy.name=fedmedian", "data.clients=2"], r"fedmedian: needs 3 updates per round, but 2 clients"),
        (["strategy.name=fedtrimmedavg", "data.clients=4"], r"needs 5 .* with trimmed_fraction=0.2, but 4 clients"),
        (
            [DP, "strategy.participation=0.5"],
            r"strategy.participation=0.5: .*drawn with probability strategy.fraction_train.*; set 1.0",
        ),
        (
            ["privacy.noise_multiplier=1"],
            r"privacy.noise_multiplier=1.0: privacy.mechanism=none doesn't use it, only .*central or .*leave it out",
        ),
        ([DP, "privacy.clip_norm_lr=1"], r"privacy.clip_norm_lr=1.0: only adaptive clipping uses it; set .*quantile"),
        ([DP, "privacy.target_clipped_quantile=0.5"], r"noise_multiplier=1: .*twice the noise .*stddev=0.5; raise"),
        (
            [DP, "privacy.target_epsilon=1", "privacy.noise_multiplier=1"],
            r"target_epsilon=1.0: finds the noise",
        ),
        ([DP, "strategy.minimum_replies=2"], r"strategy.minimum_replies=2: .*would tell of single clients; set 1"),
        ([DP, "strategy.name=krum"], r"privacy.mechanism=central: strategy.name=krum is a rule of single updates"),
        ([DP, "strategy.name=qfedavg"], r"privacy.mechanism=central: strategy.name=qfedavg weighs by losses"),
        ([DP, "strategy.name=fednova"], r"privacy.mechanism=central: strategy.name=fednova divides single updates"),
        (["privacy.mechanism=local", "privacy.canaries=5"], r"privacy.canaries=5: privacy.mechanism=local doesn't use"),
        (["privacy.mechanism=example"], r"strategy.spiking=True: .*calibrated on private samples outside .*central"),
        ([*SGD, "model.batch_norm=true"], r"model.batch_norm=True: .*mixes the samples of a batch.*set False"),
        (
            [*SGD, "strategy.name=fedlec"],
            r"strategy.name=fedlec: .*known to be a mean over samples; take one of",
        ),
        ([*SGD, "training.clip_norm=1"], r"training.clip_norm=1.0: .*clipped to privacy.clipping_norm; leave it out"),
        ([*SGD, "training.micro_batch=1"], r"training.micro_batch=1: .*sample by sample; leave it out"),
        (["strategy.name=fedavgg"], r"did you mean"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build_checked(compose(None, overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "warnings"),
    [
        ([], []),
        ([DP], ["what metrics.jsonl tells of clients' losses and accuracies, and who replied, is not protected"]),
    ],
)
def test_what_is_doubtful_is_said(caplog: pytest.LogCaptureFixture, overrides: list[str], warnings: list[str]) -> None:
    base = build_checked(compose(None, overrides))
    assert isinstance(base, FedAvg)
    found = [record.getMessage() for record in caplog.records if record.name == "strategies.combinations"]
    assert len(found) == len(warnings)
    assert all(text in line for text, line in zip(warnings, found, strict=True))


@pytest.mark.parametrize("mechanism", ["central", "distributed", "example"])
def test_what_a_plug_in_asks_of_clients_is_not_taken_for_private(
    mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STRATEGIES.items, "mine", STRATEGIES.items["fedavg"])
    options = [*SGD, f"privacy.mechanism={mechanism}", "strategy.name=mine"]
    with pytest.raises(ConfigError, match=r"strategy.name=mine.* isn't known to"):
        build_checked(compose(None, options))


def test_conversion_on_made_images_follows_from_what_dp_sgd_released() -> None:
    options = ["privacy.mechanism=example", "model.batch_norm=false", "conversion.data=synthetic"]
    assert isinstance(build_checked(compose(None, options)), FedAvg)


def test_a_robust_strategy_needs_its_quorum() -> None:
    assert minimum_replies(compose(None, ["strategy.name=krum"])) == 5
    assert minimum_replies(compose(None, ["strategy.name=krum", "strategy.minimum_replies=6"])) == 6
    assert minimum_replies(compose(None, ["strategy.minimum_replies=3"])) == 3
