"""The three sentences above an audit's report, and proof beside attack."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from experiments.audit.found import Audit
from experiments.audit.proof import proof_as_csv, proof_table
from experiments.audit.summary import SUMMED, difference, proven, summary
from snnfl.auditing.measures import MEASURES
from snnfl.auditing.scorecard import WHO
from snnfl.auditing.selection import Compared
from snnfl.auditing.verdicts import judged_metrics
from snnfl.config import compose


def entry(attack: str, verdict: str, labels: str, right: float, **others: Any) -> dict[str, Any]:
    """Return what the sentences read of a scorecard's object."""
    metrics = {metric.name: {"value": 0.2, "interval": None} for metric in judged_metrics("images")}
    metrics |= {"psnr": {"value": 9.0, "interval": None}, "label_accuracy": {"value": right, "interval": None}}
    direction = {"leaks": "better", "nothing seen": "worse"}.get(verdict, "unclear")
    return {
        "attack": attack, "kind": "images", "updates": "S-update", "round": 1, "verdict": verdict, "victims": 4,
        "label_verdict": labels, "label_floor": 0.2, "value": 9.0, "metrics": metrics,
        "floor": {name: 10.0 for name in metrics},
        "against_floor": {metric.name: direction for metric in judged_metrics("images")},
        "setting": "realistic", "reasons": [], "chance": 1 / 1004,
        "threat_model": {"who": WHO, "facts": [], "clients": 1, "colluding": 0, "rounds": 1}, **others,
    }  # fmt: skip


def what_leaked(*entries: dict[str, Any]) -> str:
    return dict(summary(cast(Audit, SimpleNamespace(entries=entries, best=[], config=None, metrics=[], denied=()))))[
        "What leaked."
    ]


def test_labels_that_another_attack_tells_are_not_called_safe() -> None:
    pictures, labels = entry("matching", "unclear", "nothing seen", 0.1), entry("exact", "nothing seen", "leaks", 1.0)
    text = what_leaked(pictures, labels)
    assert "matching, which leaks most of 2 attacks" in text
    assert text.endswith(". Labels leaked, by exact in round 1: 100% are right.")
    assert what_leaked(pictures).endswith(
        ". Labels were no better than guessed: 10% are right (labels spread evenly over the classes: 20%)."
    )


def test_labels_are_those_of_the_leading_attack_where_none_tells_them_for_surer() -> None:
    pictures, labels = entry("matching", "leaks", "leaks", 0.8), entry("exact", "nothing seen", "leaks", 1.0)
    assert what_leaked(pictures, labels).endswith(". Labels leaked: 80% are right.")


def test_what_is_unclear_is_not_called_hidden() -> None:
    found = entry("matching", "leaks", "leaks", 1.0)
    found["against_floor"] |= {"psnr": "unclear", "ssim": "worse"}
    text = what_leaked(found)
    assert "; not surely more: pixels (PSNR 9.0 dB, the best guess 10.0)" in text
    assert "; no more: structure (" in text


@pytest.mark.parametrize(
    ("interval", "direction", "said"),
    [((0.4, 3.0), "unclear", True), ((-0.4, 3.0), "unclear", False), ((0.4, 3.0), "better", False)],
)
def test_an_interval_that_says_more_than_the_verdict_is_explained(
    interval: tuple[float, float], direction: str, said: bool
) -> None:
    found = entry("matching", "unclear", "leaks", 1.0)
    found["against_floor"] |= {"psnr": direction}
    metric = next(metric for metric in judged_metrics("images") if metric.name == "psnr")
    chosen = SimpleNamespace(attack="other", values={0: 20.0})
    gain = SimpleNamespace(value=1.7, interval=interval, best=chosen, other=chosen)
    best = SimpleNamespace(server_round=1, metric=metric, over_floor=gain, over_control=None)
    sentences = dict(
        summary(cast(Audit, SimpleNamespace(entries=[found], best=[best], config=None, metrics=[], denied=())))
    )
    told = "The best attack by PSNR, chosen for each client on the others (mostly other), is 1.7 dB better (95 %: "
    assert told in sentences["How sure."]
    assert "matching, the only attack" in sentences["What leaked."]
    assert ("interval is of PSNR alone; a verdict holds for all 3 metrics at once" in sentences["How sure."]) is said


@pytest.mark.parametrize(
    ("others", "text"), [(148.2, "as exact as"), (20.0, "1.5 dB better (95 %: +0.4 to +2.6) than")]
)
def test_of_what_both_attacks_find_exactly_no_rounding_is_compared(others: float, text: str) -> None:
    chosen = [SimpleNamespace(attack="one", values={0: value}) for value in (149.8, others)]
    found = SimpleNamespace(value=1.5, interval=(0.4, 2.6), best=chosen[0], other=chosen[1])
    assert difference(cast(Compared, found), MEASURES["images"].metrics[0]) == text


def test_the_others_are_those_that_are_compared_however_good_the_guess() -> None:
    found = entry("matching", "leaks", "leaks", 1.0)
    found["floor"] |= {"identified": 0.05}
    assert "20% can be told from 1,003 others (IIP; the best guess: 5.00%)" in what_leaked(found)


def test_of_given_labels_it_is_not_said_whether_they_leaked() -> None:
    text = what_leaked(entry("matching", "unclear", "given", 1.0), entry("exact", "unclear", "given", 1.0))
    assert text.endswith(". Labels were given to the attacker, so whether they leak isn't asked.")


def test_who_lacks_facts_is_told_which() -> None:
    found = entry("matching", "unclear", "unclear", 0.1)
    audit = SimpleNamespace(entries=[found], best=[], config=None, metrics=[], denied={"thresholds", "batch_size"})
    sentences = dict(summary(cast(Audit, audit)))
    assert (
        "0 facts of the training, but not batch_size and thresholds (denied; in the report: Threat models)"
        in sentences["To whom."]
    )
    assert sentences["How sure."].endswith(
        "None of these attacks is surely better than a guess; others, or more iterations, might be."
    )


def test_labels_of_plain_twins_are_not_those_of_the_run() -> None:
    own, twin = (
        entry("matching", "unclear", "unclear", 0.1),
        entry("exact", "leaks", "leaks", 1.0, updates="plain twin"),
    )
    assert what_leaked(own, twin).endswith(
        ". Whether labels leaked is unclear: 10% are right (labels spread evenly over the classes: 20%)."
    )


@pytest.mark.parametrize(
    ("mechanism", "row", "said"),
    [
        ("central", {"epsilon": 3.0, "epsilon_empirical": 0.5}, "3.00 at delta 1e-05 after round 2, of a client"),
        ("central", {"epsilon": 3.0, "epsilon_empirical": 0.5}, "refute one of 0.50 (95 %), less than proven"),
        (
            "central",
            {"epsilon": 3.0, "epsilon_empirical": 3.5},
            "refute one of 3.50 (95 %), more than proven: ",
        ),
        ("local", {"epsilon": None, "epsilon_empirical": None}, "Nothing: updates are clipped, and no noise is added."),
    ],
)
def test_a_proof_stands_beside_the_attacks(mechanism: str, row: dict[str, Any], said: str) -> None:
    ((title, text),) = proven(compose(None, [f"privacy.mechanism={mechanism}"]), [{"round": 2, **row}])
    assert title == "What is proven."
    assert said in text
    assert proven(compose(None), [{"round": 2, **row}]) == []


def protected(**threat: Any) -> Audit:
    """Return an audit of a run with masks and noise."""
    config = compose(None, ["strategy.secure_aggregation=true", "privacy.mechanism=distributed"])
    row = {"round": 1, "epsilon": 2.998, "epsilon_empirical": None}
    model = {"who": WHO, "facts": [], "clients": 5, "colluding": 0, "rounds": 1, **threat}
    found = [entry("matching", "unclear", "unclear", 0.1, threat_model=model, updates="plain update sum")]
    made = SimpleNamespace(
        entries=found,
        best=[],
        config=config,
        metrics=[row],
        path=Path("run"),
        setting=SimpleNamespace(sums=True),
        denied=(),
    )
    return cast(Audit, made)


@pytest.mark.parametrize(
    ("threat", "seen", "to_whom"),
    [
        ({}, "a sum of 5", "The server: it keeps the protocol of secure aggregation, and has the sum of 5 clients'"),
        (
            {"clients": 1, "colluding": 4},
            "one client, out of a sum; 4 colluding",
            "The server and 4 clients that collude with it: it keeps the protocol of secure aggregation, and has what "
            "is left of a sum, one client's update",
        ),
    ],
)
def test_what_a_server_of_sums_sees_stands_beside_both_epsilons_and_the_best_attack(
    threat: dict[str, Any], seen: str, to_whom: str
) -> None:
    audit = protected(**threat)
    (row,) = csv.DictReader(proof_as_csv([audit]).splitlines())
    assert row == {
        "run": "run", "server_sees": seen, "noise": "distributed", "proven_epsilon": "3.00", "refuted_epsilon": "–",
        "best_attack": "matching", "finds": "PSNR in dB 9.0", "best_guess": "10.0", "verdict": "unclear",
    }  # fmt: skip
    assert seen in proof_table([audit])
    assert dict(summary(audit))["To whom."].startswith(to_whom)
    alone = proven(compose(None, ["strategy.secure_aggregation=true"]), [{"round": 1}])
    assert alone == [("What is proven.", SUMMED)]


def test_clipping_without_noise_is_not_called_noise() -> None:
    audit = protected()
    audit.metrics[0]["epsilon"] = None
    (row,) = csv.DictReader(proof_as_csv([audit]).splitlines())
    assert (row["noise"], row["proven_epsilon"]) == ("none: clipped alone", "–")
