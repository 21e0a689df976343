"""Verdicts follow from the scores, by intervals that an independent library gives, too."""

from __future__ import annotations

import csv
import io
import json
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from snnfl.auditing.best import best_attacks
from snnfl.auditing.measures import MEASURES
from snnfl.auditing.scorecard import as_csv, curves_as_csv, entries
from snnfl.auditing.scoring import Score
from snnfl.auditing.suite import Finding, Outcome
from snnfl.auditing.verdicts import interval
from snnfl.metrics.images import wilson
from snnfl.threat import Knowledge

SETTING = SimpleNamespace(name="tested", algorithm="S-FedAvg", updates="S-update")


def scored(psnr, ssim=0.2, label=1.0, identified=0.0):
    floors = {"grey": (10.0, 0.1, 0.0), "mean_image": (12.0, 0.3, 0.0), "mean_colour": (11.0, 0.35, 0.02)}
    names = ("psnr", "ssim", "identified")
    picture = torch.zeros(1, 1, 2, 2)
    return Score(
        measures=MEASURES["images"],
        values={"psnr": psnr, "ssim": ssim, "registered_psnr": psnr, "mse": 0.1, "identified": identified},
        floors={name: dict(zip(names, values, strict=True)) for name, values in floors.items()},
        chance=0.01, extractor="64 components", label_accuracy=label, label_floor=0.1,
        curve=((0, 8.0), (4, psnr)), found=picture, true=picture,
    )  # fmt: skip


def outcome_of(*scores, attack="dlg", passed_over=(), objectives=(2.0, 1.0), failed=False, choice="", explained=True):
    result = SimpleNamespace(
        setting="realistic", reasons=(), curve=tuple(zip((0, 4), objectives, strict=True)), choice=choice,
        explained=explained,
    )  # fmt: skip
    victims = [type("Victim", (), {"partition": n})() for n in range(len(scores))]
    findings = [
        Finding(victim=victim, result=result, score=score) for victim, score in zip(victims, scores, strict=True)
    ]
    return Outcome(
        attack=attack, source="here", server_round=1, knowledge=Knowledge(), findings=tuple(findings),
        passed_over=passed_over, failed=failed,
    )  # fmt: skip


def entry(*scores, controls=(), **about):
    return entries(SETTING, [outcome_of(*scores, **about)], controls)[0]


def identifying(*shares, guessed=0.0, chance=0.0005):
    """Scores that find nothing but a share of the samples of each victim's two."""
    pictures = torch.zeros(2, 1, 2, 2)
    floors = {"grey": {"psnr": 10.0, "ssim": 0.3, "identified": guessed}}
    return [
        replace(scored(9.9 + 0.2 * (n % 2), ssim=0.3, identified=share), floors=floors, chance=chance, true=pictures)
        for n, share in enumerate(shares)
    ]


def test_few_identifications_that_chance_does_not_make_are_a_leak():
    """Three victims of seven, where two samples of 2,000 may be met by chance, come once in 30 million times."""
    few = entry(*identifying(0.5, 0, 0, 0.5, 0, 0.5, 0))
    assert few["against_floor"]["identified"] == "better"
    assert few["verdict"] == "leaks"
    assert stats.binom.sf(2, 7, 0.001) < 1e-7


@pytest.mark.parametrize(
    "scores",
    [
        identifying(0.5, 0, 0, 0, 0, 0, 0, chance=0.02),
        identifying(0.5, 0.5, 0, 0, 0, 0, 0, guessed=0.1),
        identifying(0, 0, 0, 0, 0, 0, 0),
    ],
    ids=["by chance", "as a guess does", "none"],
)
def test_few_identifications_that_a_guess_makes_are_none(scores):
    assert entry(*scores)["against_floor"]["identified"] != "better"


@pytest.mark.parametrize(
    ("clients", "guessed", "how"), [(3, 0.0, "unclear"), (3, 0.5, "unclear"), (12, 0.5, "worse"), (12, 0.0, "unclear")]
)
def test_no_identification_is_worse_than_a_guess_only_of_so_many_that_it_would_show(clients, guessed, how):
    found = entry(*(replace(each, values={**each.values, "psnr": 5.0, "ssim": 0.1})
                    for each in identifying(*[0.0] * clients, guessed=guessed)))  # fmt: skip
    assert found["against_floor"] == {"psnr": "worse", "ssim": "worse", "identified": how}
    assert found["verdict"] == ("nothing seen" if how == "worse" else "unclear")


def test_labels_that_the_attacker_was_given_are_not_judged():
    outcome = replace(outcome_of(scored(9.0), scored(9.5)), knowledge=Knowledge(labels=True))
    assert entries(SETTING, [outcome])[0]["label_verdict"] == "given"
    assert entries(SETTING, [replace(outcome, findings=())])[0]["label_verdict"] == "not scored"


def test_the_interval_is_students():
    values = [3.0, 5.0, 4.5, 9.0]
    expected = stats.t.interval(0.95, 3, loc=statistics.fmean(values), scale=stats.sem(values))
    assert interval(values) == pytest.approx(expected)
    assert interval([1.0]) is None


@pytest.mark.parametrize(
    ("psnr", "ssim", "verdict"),
    [
        ((20.0, 21.0, 22.0), 0.2, "leaks"),  # in PSNR alone
        ((9.0, 9.5, 10.0), 0.9, "leaks"),  # in SSIM alone
        ((9.0, 9.5, 10.0), 0.2, "unclear"),  # three clients are too few to say that none can be told
        ((9.0, 12.0, 15.0), 0.2, "unclear"),
        ((12.5, 12.8, 13.0), 0.2, "unclear"),  # above the floor at 95 %, but not for one of three metrics
        ((20.0,), 0.2, "unclear"),  # one victim proves nothing,
        ((75.0,), 0.2, "leaks"),  # unless the sample itself comes out
    ],
)
def test_the_verdict_compares_with_the_best_floor(psnr, ssim, verdict):
    found = entry(*(scored(value, ssim + 0.001 * n) for n, value in enumerate(psnr)))
    assert found["verdict"] == verdict
    assert found["floor"] == {
        "name": "mean_image",
        "psnr": 12.0,
        "ssim": pytest.approx(0.35),
        "identified": pytest.approx(0.02),
    }
    assert found["value"] == pytest.approx(statistics.fmean(psnr))


def test_a_distorted_picture_that_tells_whose_it_is_leaks():
    assert entry(*(scored(9.0 + n, identified=1.0) for n in range(3)))["verdict"] == "leaks"
    assert entry(*(scored(9.0 + n / 10, identified=n / 2) for n in range(3)))["verdict"] == "unclear"


def test_the_verdict_names_the_metric_that_decided():
    distorted = entry(*(scored(9.0 + n / 10, identified=1.0) for n in range(3)))
    assert distorted["against_floor"] == {"psnr": "worse", "ssim": "worse", "identified": "better"}
    text = "identifiable (IIP); pixels (PSNR), structure (SSIM) below the floor"
    assert distorted["reason"] == text
    assert distorted["verdict_text"].startswith(f"leaks: {text}; 3 victims, PSNR")
    alone = entry(scored(20.0))
    assert alone["reason"] == "pixels (PSNR), structure (SSIM), identifiable (IIP) unclear"
    (row,) = csv.DictReader(io.StringIO(as_csv([distorted])))
    assert row["better_than_floor"] == "identified"


def test_labels_are_judged_by_themselves():
    assert entry(scored(9.0), scored(9.5), scored(9.2, label=0.9))["label_verdict"] == "leaks"
    assert entry(*(scored(9.0, label=value) for value in (0.0, 0.5, 0.0)))["label_verdict"] == "unclear"
    assert entry(*(scored(9.0) for _ in range(2)))["label_verdict"] == "leaks"


@pytest.mark.parametrize(
    ("right", "guess", "verdict"), [(1.0, 0.5, "unclear"), (1.0, 0.1, "leaks"), (0.0, 0.1, "unclear")]
)
def test_of_three_labels_that_are_all_right_or_wrong_a_guess_makes_a_difference(right, guess, verdict):
    """Their mean has no deviation, by which Student's t would be sure."""
    scores = [replace(scored(9.0, label=right), label_floor=guess) for _ in range(3)]
    assert entry(*scores)["label_verdict"] == verdict


def test_refused_and_not_scored_are_told_apart():
    assert entry(passed_over=((3, "dlg: needs loss"),))["verdict"] == "refused"
    failed = entry(passed_over=((3, "dlg: KeyError: 'fc9'"),), failed=True)
    assert (failed["verdict"], failed["verdict_text"]) == ("failed", "failed: dlg: KeyError: 'fc9'")
    assert entry(None, None)["verdict"] == "not scored"
    assert entry(None, None)["victims"] == 2


def test_what_was_chosen_is_told():
    found = entry(scored(20.0), scored(21.0), choice="TV 0.5, step 0.2")
    assert found["choices"] == {"TV 0.5, step 0.2": 2}
    assert found["verdict_text"].endswith("; TV 0.5, step 0.2 for 2 victims")
    assert entry(scored(20.0))["choices"] == {}


def test_the_csv_holds_the_same_numbers():
    found = [entry(scored(20.0), scored(21.0)), entry(passed_over=((3, "dlg: needs loss"),)), entry(None)]
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["verdict"] for row in rows] == [found[0]["verdict"], "refused", "not scored"]
    assert float(rows[0]["psnr"]) == 20.5
    assert float(rows[0]["floor_psnr"]) == 12.0
    assert rows[1]["refusal"] == "dlg: needs loss"
    assert rows[2]["psnr"] == ""


def test_the_interval_of_a_stricter_level_is_wider():
    values = [3.0, 5.0, 4.5, 9.0]
    expected = stats.t.interval(0.99, 3, loc=statistics.fmean(values), scale=stats.sem(values))
    assert interval(values, 0.99) == pytest.approx(expected)


def test_an_identification_is_compared_with_what_the_floors_identify():
    few = (scored(9.0 + n / 10, identified=0.02) for n in range(4))  # 0.01 is chance, a mean colour identifies 0.02
    assert entry(*few)["verdict"] == "unclear"
    assert entry(*(scored(9.0 + n / 10, identified=0.03) for n in range(4)))["verdict"] == "unclear"  # of few clients
    assert entry(*(scored(9.0 + n / 10, identified=1.0) for n in range(4)))["verdict"] == "leaks"


@pytest.mark.parametrize(("clients", "verdict"), [(3, "unclear"), (12, "leaks")])
def test_that_all_of_few_clients_are_identified_where_a_guess_tells_half_is_no_leak(clients, verdict):
    told = [scored(9.0 + n / 10, identified=1.0) for n in range(clients)]
    floors = {name: {**floor, "identified": 0.5} for name, floor in told[0].floors.items()}
    assert entry(*(replace(score, floors=floors) for score in told))["verdict"] == verdict


def test_whom_an_attack_passes_over_is_told_and_does_not_refuse_the_others():
    found = entry(scored(20.0), scored(21.0), passed_over=((7, "dlg: the client took 99 local steps"),))
    assert found["refusal"] is None
    assert found["victims"] == 2
    assert found["passed_over"] == [{"partition": 7, "reason": "dlg: the client took 99 local steps"}]


def test_the_difference_to_the_best_control_is_taken_victim_by_victim():
    weak = outcome_of(scored(10.0), scored(11.0), scored(12.0), attack="weak")
    best = outcome_of(scored(19.0), scored(22.0), scored(24.0), attack="best")
    found = entry(scored(18.0), scored(20.0), scored(21.0), controls=[weak, best])["control"]
    low, high = interval([-1.0, -2.0, -3.0])
    assert (found["attack"], found["candidates"], found["value"]) == ("best", 2, pytest.approx(-2.0))
    assert found["interval"][0] < low < high < found["interval"][1]  # wider, for it holds whichever control is the best
    alone = entry(scored(18.0), scored(20.0), scored(21.0), controls=[best])["control"]
    assert alone["interval"] == pytest.approx((low, high))
    assert entry(scored(18.0), scored(20.0))["control"] is None
    fewer = outcome_of(scored(30.0), attack="of one victim alone")
    assert entry(scored(18.0), scored(20.0), controls=[fewer])["control"] is None


def test_a_curve_averages_victims_and_says_nothing_of_what_is_no_number():
    curve = entry(scored(20.0), scored(22.0))["curve"]
    assert [(point["iteration"], point["objective"]) for point in curve] == [(0, 1.0), (4, 0.5)]
    assert [point["psnr"]["value"] for point in curve] == [8.0, 21.0]
    assert [point["rate_psnr"] for point in curve] == [0.0, 1.0]
    broken = entry(scored(20.0), objectives=(float("inf"), float("nan")))
    json.dumps(broken, allow_nan=False)
    assert broken["curve"][1]["objective"] is None
    rows = list(csv.DictReader(io.StringIO(curves_as_csv([entry(scored(20.0), scored(22.0))]))))
    assert [(row["iteration"], row["psnr"]) for row in rows] == [("0", "8"), ("4", "21")]


def test_a_client_whose_attack_succeeded_at_once_has_a_curve_beside_one_that_took_longer():
    late = outcome_of(scored(20.0))
    findings = list(late.findings)
    findings[0].result.curve = ((3, 2.0), (4, 1.0))
    early = outcome_of(scored(21.0))
    both = Outcome(
        attack="dlg", source="here", server_round=1, knowledge=Knowledge(), findings=(*early.findings, *findings)
    )
    assert [point["iteration"] for point in entries(SETTING, [both])[0]["curve"]] == [0, 3, 4]


def test_an_identification_has_wilsons_interval_and_names_its_extractor():
    found = entry(*(scored(9.0, identified=value) for value in (1.0, 1.0, 0.5, 1.0)))
    rate = wilson(3.5, 4)
    assert found["metrics"]["identified"] == {"value": 0.875, "interval": (rate.low, rate.high)}
    assert (found["extractor"], found["chance"]) == ("64 components", pytest.approx(0.01))
    assert "identified_by_run" not in found["metrics"]  # of a network without a last linear layer


def events(f1, surface=0.5):
    floors = {"empty": {"f1": 0.0, "surface_ssim": 0.4, "identified": 0.0}}
    return replace(
        scored(0.0), measures=MEASURES["events"], floors=floors, curve=((0, 0.1), (4, f1)),
        values={"f1": f1, "surface_ssim": surface, "exact_frames": 1.0, "van_rossum": 2.0, "victor_purpura": 3.0,
                "identified": 1.0},
    )  # fmt: skip


def sounds(distance):
    floors = {"mean_series": {"log_spectral": 9.0, "recognised": 0.1, "identified": 0.0}}
    values = {"log_spectral": distance, "recognised": 0.1, "correlation": 0.0, "identified": 0.0}
    return replace(scored(0.0), measures=MEASURES["audio"], floors=floors, values=values, curve=((0, distance),))


@pytest.mark.parametrize(
    ("distances", "verdict"),
    [((3.0, 3.5, 4.0), "leaks"), ((14.0, 15.0, 16.0), "unclear"), ((5.0, 9.0, 13.0), "unclear")],
)
def test_of_a_distance_less_is_more_of_a_leak(distances, verdict):
    found = entries(SETTING, [replace(outcome_of(*map(sounds, distances)), kind="audio")])[0]
    assert (found["verdict"], found["metric"], found["floor"]["name"]) == (verdict, "log_spectral", "mean_series")


def test_kinds_side_by_side_have_each_their_columns():
    recordings = replace(outcome_of(events(0.8), events(0.9)), kind="events")
    found = [entry(scored(20.0), scored(21.0)), *entries(SETTING, [recordings])]
    first, second = csv.DictReader(io.StringIO(as_csv(found)))
    assert (first["psnr"], first["f1"], first["floor_f1"]) == ("20.5", "", "")
    assert (second["psnr"], second["f1"], second["rate_f1"], second["floor"]) == ("", "0.85", "0.5", "empty")
    curve = list(csv.DictReader(io.StringIO(curves_as_csv(found))))
    assert [(row["psnr"], row["f1"]) for row in curve] == [("8", ""), ("20.5", ""), ("", "0.1"), ("", "0.85")]
    assert "event F1 0.85" in found[1]["verdict_text"]


def test_images_keep_the_columns_that_they_had():
    columns = as_csv([entry(scored(20.0), scored(21.0))]).splitlines()[0].split(",")
    metrics = ("psnr", "ssim", "registered_psnr", "mse", "label_accuracy", "identified")
    assert {f"{name}{end}" for name in metrics for end in ("", "_low", "_high")} < {*columns}
    assert {"floor_psnr", "floor_ssim", "floor_identified", "rate_psnr", "rate_ssim", "lpips", "over_control"} < {
        *columns
    }


def test_the_best_attack_is_compared_with_guesses_and_twins_without_the_advantage_of_choosing():
    """Each attack is the best on the one victim that it is lucky with: chosen on the others it isn't."""
    outcomes = [outcome_of(*(scored(20.0 if n == luck else 10.0 + luck) for n in range(3)), attack=f"a{luck}")
                for luck in range(3)]  # fmt: skip
    (best,) = best_attacks(outcomes, [outcome_of(scored(12.0), scored(12.0), scored(12.0), attack="twin")])
    assert best.value == pytest.approx(statistics.fmean([12.0, 12.0, 11.0]))
    assert max(statistics.fmean(f.score.values["psnr"] for f in o.findings) for o in outcomes) > best.value + 2
    assert best.over_floor.other.attack == "mean_image"
    assert best.over_control.value == pytest.approx(best.value - 12.0)
    low, high = best.over_control.interval
    assert low < best.over_control.value < high
    assert best_attacks([outcome_of(None, None)]) == []


def test_updates_that_the_stated_training_does_not_explain_are_counted():
    found = entry(scored(9.0), scored(8.0), explained=False)
    assert found["unexplained"] == 2
    assert "2 updates not explained by the stated training" in found["verdict_text"]
    assert "explained" not in entry(scored(9.0))["verdict_text"]


def test_what_reads_earlier_rounds_is_not_compared_with_twins_that_have_none():
    outcomes = [outcome_of(scored(20.0), scored(21.0), attack="joint_rounds"), outcome_of(scored(11.0), scored(12.0))]
    (best,) = best_attacks(outcomes, [outcome_of(scored(12.0), scored(13.0), attack="twin")])
    assert best.over_floor.best.attack == "joint_rounds"
    assert best.over_control.best.attack == "dlg"
