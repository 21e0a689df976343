"""What thresholds tell of a client beside its plain twin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from victims import attacked, digits, small_mlp

from snnfl.auditing.side_channel import above_all, auc, side_channels
from snnfl.auditing.victims import Victim
from snnfl.config import ConversionConfig, TrainingConfig
from snnfl.threat import PublicImages

TRAINING = TrainingConfig(epochs=1, batch_size=10, learning_rate=0.1, momentum=0.0, weight_decay=0.0)


def client(conversion, *, calibrating=None):
    made = attacked(small_mlp(), images=30, training=TRAINING, conversion=conversion, calibrating=calibrating)
    pixels, labels, mean, std = digits(300, 1000)
    public = PublicImages(inputs=(pixels - mean) / std, labels=labels)
    return Victim(server_round=1, partition=4, view=replace(made.view, public=public), truth=made.truth)


def test_thresholds_find_members_where_the_update_of_many_images_does_not():
    conversion = ConversionConfig(steps=4, thresholds="channel_mmse", calibration="none")
    own, foreign = side_channels([client(conversion), client(conversion, calibrating=500)], 0)
    assert (own.server_round, own.partition, own.images) == (1, 4, 30)
    assert own.found > 0.3 > foreign.found
    assert own.auc > foreign.auc + 0.1
    assert own.twin_auc == pytest.approx(foreign.twin_auc)  # the plain twin knows no calibration images
    assert 0 < own.true_brightness < 1


def test_plain_clients_and_those_who_tell_nothing_have_no_row():
    victim = client(ConversionConfig(steps=4))
    denied = replace(victim, view=replace(victim.view, knowledge=replace(victim.view.knowledge, thresholds=False)))
    assert side_channels([client(None), denied, replace(victim, truth=None)], 0) == []


def test_auc_and_what_is_above_all_by_hand():
    members, others = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0])
    assert auc(members, others) == pytest.approx((2 + 0.5) / 4)
    assert above_all(members, others) == 0.5
