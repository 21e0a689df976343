"""Triggers on event recordings are those of the papers' code, and touch nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snnfl.poisoning.event_triggers import (
    EVENTS,
    Polarity,
    moving_event_trigger,
    static_event_trigger,
    temporal_event_trigger,
)
from snnfl.poisoning.triggers import Trigger, TriggerError

polarities = st.sampled_from(["negative", "positive", "both"])


def recordings(steps: int, height: int, width: int, seed: int) -> Tensor:
    """Draw two recordings, with counts that no trigger has."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(2, 256, (2, steps, 2, height, width), generator=draw).to(torch.uint8)


def literal(counts: Tensor, columns: dict[int, int], size: int, polarity: str) -> Tensor:
    """Do what ``poisoned_dataset.py`` of github.com/GorkaAbad/Sneaky-Spikes does, a pixel at a time.

    Its polarity 1 is (0, 1), 2 is (1, 0), 3 is (1, 1).
    """
    after = counts.clone()
    for recording in after:
        for step, column in columns.items():
            for row in range(size):
                for x in range(column, column + size):
                    recording[step, 0, row, x] = 0 if polarity == "positive" else 1
                    recording[step, 1, row, x] = 0 if polarity == "negative" else 1
    return after


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), polarities, st.integers(0, 9))
def test_a_static_square_stands_in_every_frame(
    steps: int, size: int, above: int, beside: int, polarity: Polarity, seed: int
) -> None:
    counts = recordings(steps, size + above, size + beside, seed)
    before = counts.clone()
    stamped = static_event_trigger(counts.shape[1:], size=size, polarity=polarity).stamp(counts, white=255)
    assert torch.equal(stamped, literal(counts, dict.fromkeys(range(steps), 0), size, polarity))
    assert stamped.dtype == torch.uint8
    assert torch.equal(counts, before)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), polarities, st.integers(0, 9))
def test_a_moving_square_has_one_of_three_places_in_turn(
    steps: int, size: int, above: int, beside: int, polarity: Polarity, seed: int
) -> None:
    counts = recordings(steps, size + above, 3 * size + 2 + beside, seed)
    width_list, columns, place = [0, size + 2, size * 2 + 2], {}, 0
    for step in range(steps):
        if place >= len(width_list):
            place = 0
        columns[step] = width_list[place]
        place += 1
    stamped = moving_event_trigger(counts.shape[1:], size=size, polarity=polarity).stamp(counts, white=255)
    assert torch.equal(stamped, literal(counts, columns, size, polarity))


@given(st.integers(1, 12), st.data(), polarities, st.integers(0, 9))
def test_time_slices_are_disjoint_and_together_the_whole_trigger(
    steps: int, data: st.DataObject, polarity: Polarity, seed: int
) -> None:
    parts = data.draw(st.integers(1, steps))
    counts = recordings(steps, 5, 6, seed)
    shape = counts.shape[1:]
    make = [temporal_event_trigger(shape, size=2, polarity=polarity, part=part, parts=parts) for part in range(parts)]
    whole = temporal_event_trigger(shape, size=2, polarity=polarity, parts=parts)
    assert torch.equal(torch.stack([each.weight for each in make]).sum(0), whole.weight)
    assert set(whole.weight.flatten().tolist()) == {0.0, 1.0}  # so no pixel is in two slices
    frames = [each.weight.flatten(1).any(1).nonzero().flatten().tolist() for each in make]
    assert [step for own in frames for step in own] == list(range(steps))  # in the order of time
    assert {len(own) for own in frames} <= {steps // parts, -(-steps // parts)}
    after = counts
    for each in make:
        after = each.stamp(after, white=255)
    assert torch.equal(after, whole.stamp(counts, white=255))
    assert torch.equal(after, static_event_trigger(shape, size=2, polarity=polarity).stamp(counts, white=255))


@pytest.mark.parametrize(("steps", "split"), [(16, 2), (10, 5), (12, 1)])
def test_time_slices_are_those_of_time_bandits_code(steps: int, split: int) -> None:
    """``main.py`` of github.com/GorkaAbad/Time-Bandits: each attacker goes on where the one before it ended."""
    counts = recordings(steps, 6, 6, 0)
    begin, split_t = 0, int(steps / split)
    for part in range(split):
        end = begin + split_t
        expected = literal(counts, dict.fromkeys(range(begin, end), 0), 3, "both")
        trigger = temporal_event_trigger(counts.shape[1:], polarity="both", part=part, parts=split)
        assert torch.equal(trigger.stamp(counts, white=255), expected)
        begin += split_t


def test_counts_may_be_floats_and_an_event_is_one_whatever_is_the_brightest() -> None:
    stamped = static_event_trigger((2, 2, 4, 4), size=1).stamp(torch.full((1, 2, 2, 4, 4), 7.0), white=200)
    assert stamped[0, :, :, 0, 0].tolist() == [[0.0, 1.0]] * 2
    assert stamped.dtype == torch.float32
    assert {name: sum(events) for name, events in EVENTS.items()} == {"negative": 1, "positive": 1, "both": 2}


@pytest.mark.parametrize("make", [static_event_trigger, moving_event_trigger, temporal_event_trigger])
def test_a_strength_is_a_part_of_the_largest_count(make: Callable[..., Trigger]) -> None:
    counts = recordings(4, 3, 5, 0)
    one, some = (make(counts.shape[1:], size=1, polarity="both", strength=strength) for strength in (None, 0.3))
    expected = counts.where(one.weight == 0, torch.tensor(6, dtype=torch.uint8))
    assert torch.equal(some.stamp(counts, white=19), expected)  # 5.7 events


def test_what_has_no_place_for_a_trigger_is_one_line_that_names_the_way_out() -> None:
    with pytest.raises(TriggerError, match=r"trigger_size=5: the trigger has 5x5 pixels, a frame 4x9"):
        static_event_trigger((3, 2, 4, 9), size=5)
    with pytest.raises(TriggerError, match=r"trigger_size=3: the trigger has 3x11 pixels, a frame 10x10"):
        moving_event_trigger((3, 2, 10, 10), size=3)
    with pytest.raises(TriggerError, match=r"attackers=4: recordings have 3 time steps.* take at most 3"):
        temporal_event_trigger((3, 2, 8, 8), parts=4)
    with pytest.raises(TriggerError, match=r"\[1, 28, 28\] are no recordings of an event camera.*take badnets"):
        static_event_trigger((1, 28, 28))
    with pytest.raises(TriggerError, match=r"\[100, 700\] are no recordings.*take label_flip"):
        moving_event_trigger((100, 700))
    with pytest.raises(TriggerError, match=r"\[10, 3, 8, 8\] are no recordings"):
        temporal_event_trigger((10, 3, 8, 8))
