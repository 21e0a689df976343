"""Verdicts follow from the scores, by intervals that an independent library gives, too."""

from __future__ import annotations

import csv
import io
import statistics

import pytest
import torch
from scipy import stats

from snnfl.audit.scorecard import as_csv, entries, interval
from snnfl.audit.scoring import Score
from snnfl.audit.suite import Finding, Outcome
from snnfl.audit.view import Knowledge
from snnfl.config import compose

CONFIG = compose(overrides=["run.name=tested"])


def scored(psnr, ssim=0.2, label=1.0, identified=0.0):
    floors = {"grey": (10.0, 0.1), "mean_image": (12.0, 0.3), "mean_colour": (11.0, 0.35)}
    picture = torch.zeros(1, 1, 2, 2)
    return Score(
        psnr=psnr, ssim=ssim, registered_psnr=psnr, mse=0.1, label_accuracy=label, label_floor=0.1,
        identified=identified, chance=0.01, lpips=None, floors=floors, found=picture, true=picture,
    )  # fmt: skip


def entry(*scores, refusal=None):
    result = type("Result", (), {"setting": "realistic", "reasons": ()})()
    findings = tuple(Finding(victim=None, result=result, score=score) for score in scores)
    outcome = Outcome(
        attack="dlg", source="here", server_round=1, knowledge=Knowledge(), findings=findings, refusal=refusal
    )
    return entries(CONFIG, [outcome])[0]


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
        ((9.0, 9.5, 10.0), 0.2, "nothing seen"),
        ((9.0, 12.0, 15.0), 0.2, "unclear"),
        ((20.0,), 0.2, "unclear"),  # one victim proves nothing
    ],
)
def test_the_verdict_compares_with_the_best_floor(psnr, ssim, verdict):
    found = entry(*(scored(value, ssim + 0.001 * n) for n, value in enumerate(psnr)))
    assert found["verdict"] == verdict
    assert found["floor"] == {"name": "mean_image", "psnr": 12.0, "ssim": pytest.approx(0.35)}
    assert found["value"] == pytest.approx(statistics.fmean(psnr))


def test_a_distorted_picture_that_tells_whose_it_is_leaks():
    assert entry(*(scored(9.0 + n, identified=1.0) for n in range(3)))["verdict"] == "leaks"
    assert entry(*(scored(9.0 + n / 10, identified=n / 2) for n in range(3)))["verdict"] == "unclear"


def test_labels_are_judged_by_themselves():
    assert entry(scored(9.0), scored(9.5), scored(9.2, label=0.9))["label_verdict"] == "leaks"
    assert entry(*(scored(9.0, label=value) for value in (0.0, 0.5, 0.0)))["label_verdict"] == "unclear"


def test_refused_and_not_scored_are_told_apart():
    assert entry(refusal="dlg: needs loss")["verdict"] == "refused"
    assert entry(None, None)["verdict"] == "not scored"
    assert entry(None, None)["victims"] == 2


def test_the_csv_holds_the_same_numbers():
    found = [entry(scored(20.0), scored(21.0)), entry(refusal="dlg: needs loss"), entry(None)]
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["verdict"] for row in rows] == [found[0]["verdict"], "refused", "not scored"]
    assert float(rows[0]["psnr"]) == 20.5
    assert float(rows[0]["floor_psnr"]) == 12.0
    assert rows[1]["refusal"] == "dlg: needs loss"
    assert rows[2]["psnr"] == ""
