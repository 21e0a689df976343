"""What is recorded comes back as it was; what is damaged is named; what is too much ends the recording alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.recording import (
    RECEIVED,
    SECRET,
    Recording,
    RecordingError,
    client_folder,
    read_recording,
    read_truth,
    write_truth,
)

ARRAYS = {"fc.weight": torch.arange(6.0).view(2, 3), "relu.threshold": torch.tensor([0.5])}
METRICS = {"num-examples": 4, "loss": 0.25}


def recorded(folder, rounds=(1, 2), partitions=(0, 3)):
    recording = Recording(folder, 10**6)
    for server_round in rounds:
        recording.write_sent(server_round, {"fc.weight": float(server_round) * ARRAYS["fc.weight"]})
        for partition in partitions:
            recording.write_received(server_round, partition, ARRAYS, METRICS)
    return folder


def test_what_was_written_is_read_in_order(tmp_path):
    found = list(read_recording(recorded(tmp_path)))
    assert [(r.server_round, r.partition) for r in found] == [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert all(torch.equal(found[2].exchange.received[name], array) for name, array in ARRAYS.items())
    assert torch.equal(found[2].exchange.sent["fc.weight"], 2 * ARRAYS["fc.weight"])
    assert found[2].metrics == METRICS


def test_chosen_rounds_alone_are_read(tmp_path):
    assert {r.server_round for r in read_recording(recorded(tmp_path), frozenset({2}))} == {2}
    with pytest.raises(RecordingError, match="round 9 is not recorded"):
        list(read_recording(tmp_path, frozenset({9})))


def test_a_choice_of_rounds_and_clients():
    recording = Recording(Path("nowhere"), 1, frozenset({2}), frozenset({5}))
    assert recording.wants(2)
    assert recording.wants(2, 5)
    assert not recording.wants(1)
    assert not recording.wants(2, 4)


def test_the_budget_ends_the_recording_with_one_line(tmp_path, caplog):
    recording = Recording(tmp_path, 60)
    for partition in range(5):
        recording.write_received(1, partition, ARRAYS, METRICS)  # 28 bytes each
    assert len(list(tmp_path.rglob(RECEIVED))) == 2
    assert [record.message for record in caplog.records] == [
        "the recording for the audit ends here, the run goes on: audit.max_bytes=60 is spent"
    ]
    assert not recording.wants(1)


def test_a_resumed_run_counts_what_lies_there(tmp_path):
    recorded(tmp_path)
    assert not list(tmp_path.rglob("partition-000009"))
    Recording(tmp_path, 100).write_received(3, 9, ARRAYS, METRICS)
    assert not list(tmp_path.rglob("partition-000009"))


def test_a_disk_that_cannot_be_written_ends_the_recording_alone(tmp_path, caplog):
    (tmp_path / "recording").write_text("in the way")
    Recording(tmp_path, 10**6).write_sent(1, ARRAYS)
    assert "the run goes on" in caplog.text


def test_the_truth_comes_back_and_is_absent_without_consent(tmp_path):
    truth = GroundTruth(
        images=torch.rand(2, 1, 4, 4),
        labels=torch.tensor([1, 2]),
        biases={"fc.bias": torch.ones(3)},
        trained_biases={"fc.bias": torch.full((3,), 2.0)},
    )
    write_truth(tmp_path / "truth", 1, 7, truth)
    found = read_truth(tmp_path / "truth", 1, 7)
    assert torch.equal(found.images, truth.images)
    assert torch.equal(found.labels, truth.labels)
    assert torch.equal(found.biases["fc.bias"], truth.biases["fc.bias"])
    assert torch.equal(found.trained_biases["fc.bias"], truth.trained_biases["fc.bias"])
    assert read_truth(tmp_path / "truth", 1, 8) is None


def test_a_truth_whose_images_have_no_labels_is_named(tmp_path):
    path = client_folder(tmp_path / "truth", 1, 7) / SECRET
    write_truth(tmp_path / "truth", 1, 7, GroundTruth(images=torch.rand(2, 1, 4, 4), labels=torch.tensor([1, 2, 3])))
    with pytest.raises(RecordingError, match="expected images and as many labels") as caught:
        read_truth(tmp_path / "truth", 1, 7)
    assert str(path) in str(caught.value)


def test_no_recording_says_what_to_do(tmp_path):
    with pytest.raises(RecordingError, match=r"no recording; run with audit\.record=true"):
        list(read_recording(tmp_path))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_named_in_one_line(tmp_path_factory, data):
    folder = recorded(tmp_path_factory.mktemp("audit"), rounds=(1,), partitions=(0,))
    truth = GroundTruth(images=torch.rand(2, 1, 4, 4), labels=torch.tensor([1, 2]), biases={"fc.bias": torch.ones(3)})
    write_truth(folder / "truth", 1, 0, truth)
    path = data.draw(st.sampled_from(sorted(folder.rglob("*.safetensors"))))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        found, told = list(read_recording(folder)), read_truth(folder / "truth", 1, 0)
    except RecordingError as caught:
        error = str(caught)
    else:  # white space of the file's header means nothing
        assert torch.equal(found[0].exchange.received["fc.weight"], ARRAYS["fc.weight"])
        assert torch.equal(told.images, truth.images)
        assert torch.equal(told.labels, truth.labels)
        return
    assert path.name in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("round-000001/sent.safetensors", "round-000001/partition-000003/received.safetensors", "of partition None"),
        ("round-000001/partition-000000/received.safetensors", "round-000001/sent.safetensors", "of partition 0"),
        (
            "round-000001/partition-000000/received.safetensors",
            "round-000001/partition-000003/received.safetensors",
            "is of partition 0, expected 3",
        ),
        ("round-000001/sent.safetensors", "round-000002/sent.safetensors", "is of round 1, expected 2"),
    ],
)
def test_a_sound_file_of_another_place_is_named(tmp_path, source, target, words):
    folder = recorded(tmp_path) / "recording"
    shutil.copy(folder / source, folder / target)
    with pytest.raises(RecordingError, match=words) as caught:
        list(read_recording(tmp_path))
    assert str(folder / target) in str(caught.value)


def test_the_truth_of_another_client_is_named(tmp_path):
    for partition in (3, 4):
        truth = GroundTruth(images=torch.rand(1, 1, 4, 4), labels=torch.tensor([partition]))
        write_truth(tmp_path / "truth", 1, partition, truth)
    ours, theirs = (client_folder(tmp_path / "truth", 1, partition) / SECRET for partition in (3, 4))
    shutil.copy(theirs, ours)
    with pytest.raises(RecordingError, match="is of partition 4, expected 3"):
        read_truth(tmp_path / "truth", 1, 3)
