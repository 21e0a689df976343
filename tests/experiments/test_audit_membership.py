"""What an audit says of who was in: a sentence, a table and a file, of the same numbers."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.audit.membership import (
    membership_as_csv,
    membership_line,
    membership_section,
    side_channel_line,
)
from experiments.federated_membership import STUDY, configuration, private, read_study
from snnfl import rng
from snnfl.auditing.federated_membership import BEST, MembershipRow
from snnfl.config import ConfigError
from snnfl.metrics.roc import auc, score


def row(attack: str, shift: float, *, clients: int = 5, each: int = 200, reason: str = "") -> MembershipRow:
    draw = np.random.default_rng(rng.derive_seed(0, attack))
    members = np.arange(2 * each) < each
    values = [draw.normal(size=2 * each) + shift * members for _ in range(clients)]
    return MembershipRow(
        server_round=4, attack=attack, rounds=3, clients=clients, members=clients * each,
        scored=score(values, [members] * clients), verdict="leaks" if shift else "unclear", reason=reason,
        aucs={number: auc(each_of, members) for number, each_of in enumerate(values)}, gap=0.123,
    )  # fmt: skip


REFUSED = replace(
    row("fingerprint", 0.0), clients=0, scored=None, verdict="refused", reason="fingerprint: <no> thresholds"
)


def test_a_line_says_what_thresholds_find():
    asked = [SimpleNamespace(found=0.8, twin_found=0.1), SimpleNamespace(found=0.6, twin_found=None)]
    said = side_channel_line(SimpleNamespace(path=Path("runs/one"), side=asked))
    assert said is not None
    assert said.startswith(
        "one: thresholds find 70% of the images of 2 clients without a false alarm among 1,000 public"
    )
    assert "(weights of a plain update 10%)" in said
    assert side_channel_line(SimpleNamespace(path=Path("runs/one"), side=[])) is None


def audit(*rows: MembershipRow) -> SimpleNamespace:
    return SimpleNamespace(path=Path("runs/one"), membership=rows)


def test_the_sentence_is_of_the_best_attack():
    best = row(BEST, 1.0, reason="of 3, mostly fedmia_loss")
    line = membership_line(audit(row("round_loss", 2.0), best, REFUSED))
    assert line == (
        f"one, round 4: who was in the data: the server tells members from others, AUC {best.scored.auc} "
        "(0.5 is chance), mostly by fedmia_loss; 5 clients, 1000 members"
    )
    alone = membership_line(audit(row("round_loss", 0.0, clients=1), REFUSED))
    assert "the server wasn't seen to tell members from others" in alone
    assert alone.endswith("mostly by round_loss; 1 client, 200 members")
    several = row("round_loss", 0.0, clients=2)
    assert f"and up to {several.scored.auc.high:.3f} isn't excluded" in membership_line(audit(several))
    assert membership_line(audit()) is None
    assert membership_line(audit(REFUSED)) is None


def test_the_table_and_the_file_have_a_row_of_every_attack():
    given = audit(row("round_loss", 1.0), REFUSED)
    page = str(membership_section([given]))
    scored, refused = re.findall(r"<tr>(?:(?!</tr>).)*(?:round_<wbr>loss|fingerprint).*?</tr>", page, re.S)
    assert f"{given.membership[0].scored.auc.value:.3f}" in scored
    assert "%" in scored
    assert "&lt;no&gt; thresholds" in refused
    assert "right about 12.3 points more of the members" in page
    first, second = csv.DictReader(io.StringIO(membership_as_csv([given])))
    assert float(first["auc"]) == pytest.approx(given.membership[0].scored.auc.value, abs=1e-4)
    assert float(first["tpr_at_1_low"]) < float(first["tpr_at_1"]) < float(first["tpr_at_1_high"])
    assert (first["run"], first["round"], first["members"], first["gap"]) == ("one", "4", "1000", "0.123")
    assert (second["auc"], second["verdict"], second["reason"]) == ("", "refused", "fingerprint: <no> thresholds")


def test_the_study_is_of_consenting_clients_and_trains_as_attacks_repeat_it(tmp_path):
    study = read_study(STUDY)
    assert {"FedAvg", "S-FedAvg", "SNN"} <= study.kinds.keys()
    for kind in study.kinds:
        config = configuration(study, kind, 0, tmp_path)
        assert config.audit.record
        assert config.audit.ground_truth
        assert config.training.optimizer == "sgd"
        assert max(study.rounds) == config.run.rounds
        assert config.privacy.noise_seed == (0 if private(study, kind) else None)
    assert any(private(study, kind) for kind in study.kinds)
    assert len(study.seeds) >= 3
    wrong = tmp_path / "study.yaml"
    wrong.write_text(STUDY.read_text().replace("round_loss", "round_los"))
    with pytest.raises(ConfigError, match="did you mean 'round_loss'"):
        read_study(wrong)
    with pytest.raises(ConfigError, match="no such file"):
        read_study(tmp_path / "none.yaml")
