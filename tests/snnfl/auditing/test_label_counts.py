"""Counted labels of clients with many images, several steps and epochs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from victims import attacked, digits, small_mlp

from snnfl.auditing.label_counts import label_counts
from snnfl.auditing.victims import Victim
from snnfl.config import ConversionConfig, TrainingConfig
from snnfl.threat import PublicImages

TRAINING = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.02, momentum=0.5, weight_decay=0.0)


def client(conversion=None, **view):
    """Return a client with 150 digits."""
    made = attacked(small_mlp(), images=150, training=TRAINING, conversion=conversion)
    pixels, labels, mean, std = digits(200, 800)
    public = PublicImages(inputs=(pixels - mean) / std, labels=labels)
    return Victim(server_round=3, partition=7, view=replace(made.view, public=public, **view), truth=made.truth)


@pytest.mark.parametrize("conversion", [None, ConversionConfig(steps=8)])
def test_labels_of_hundreds_of_images_are_counted(conversion):
    victim = client(conversion)
    shifted = replace(victim, truth=replace(victim.truth, labels=(victim.truth.labels % 3)))
    row, wrong = label_counts([victim, shifted], 0)
    assert (row.server_round, row.partition, row.images) == (3, 7, 150)
    assert row.misplaced < row.even
    assert row.correlation > 0.5
    assert wrong.misplaced > 0.5  # of labels that the client hasn't


def test_who_trains_otherwise_or_tells_nothing_is_not_counted():
    victim = client(beyond=("training.optimizer=adam",))
    assert label_counts([victim, replace(client(), truth=None)], 0) == []


def test_who_claims_countless_images_is_not_counted():
    victim = client()
    claim = replace(victim.view.knowledge, images=10**15, batch_size=1)
    assert label_counts([replace(victim, view=replace(victim.view, knowledge=claim))], 0) == []
