"""A recording with a right checksum and wrong contents is an error that names the file."""

from __future__ import annotations

import math

import pytest
import torch

from snnfl.auditing.checked import read_checked, read_checked_truth
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.recording import Recording, RecordingError, write_truth
from snnfl.config import compose
from snnfl.workspace import Workspace

EXAMPLES = {"num-examples": 3}


def work_of(*options):
    return Workspace(compose(overrides=["data.source=digits", "data.clients=10", *options]))


def arrays_of(specs):
    return {name: torch.ones(spec.shape) for name, spec in specs.items()}


def written(folder, work, *, sent=None, received=None, metrics=EXAMPLES):
    recording = Recording(folder, 10**9)
    recording.write_sent(1, arrays_of(work.format.sent_specs) | (sent or {}))
    recording.write_received(1, 4, arrays_of(work.format.specs) | (received or {}), metrics)
    return folder


@pytest.mark.parametrize("spiking", [True, False])
def test_what_a_run_records_passes(tmp_path, spiking):
    work = work_of(f"strategy.spiking={spiking}")
    (found,) = read_checked(work, written(tmp_path, work))
    assert (found.server_round, found.partition) == (1, 4)


@pytest.mark.parametrize(
    ("wrong", "file", "words"),
    [
        ({"received": {"evil": torch.ones(1)}}, "received", "holds a surplus 'evil'"),
        ({"sent": {"fc5.bias": torch.ones(10)}}, "sent", "holds a surplus 'fc5.bias'"),
        ({"received": {"fc5.weight": torch.ones(10, 83)}}, "received", r"expected float32\[10, 84\]"),
        ({"received": {"fc5.weight": torch.ones(10, 84, dtype=torch.int64)}}, "received", "int64"),
        ({"received": {"fc5.bias": torch.full((10,), math.nan)}}, "received", "holds NaN"),
        ({"received": {"norm1.var": -torch.ones(6)}}, "received", "expected no negative value"),
        ({"received": {"relu1.threshold": torch.zeros(1)}}, "received", "expected positive values"),
        ({"metrics": {}}, "received", "num-examples is None"),
        ({"metrics": []}, "received", "num-examples is None"),
        ({"metrics": {"num-examples": "many"}}, "received", "num-examples is 'many'"),
        ({"metrics": {"num-examples": 1e9}}, "received", "expected 1 to"),
        ({"metrics": {"num-examples": math.nan}}, "received", "num-examples is nan"),
    ],
)
def test_what_no_run_records_is_named_in_one_line(tmp_path, wrong, file, words):
    work = work_of()
    options = {"sent": None, "received": None, "metrics": EXAMPLES} | wrong
    recording = Recording(tmp_path, 10**9)
    recording.write_sent(1, arrays_of(work.format.sent_specs) | (options["sent"] or {}))
    path = tmp_path / "recording/round-000001"
    # As an adversary would: past the writer's own types, under a checksum that is right.
    from snnfl.auditing.recording import _write

    about = {"round": 1, "partition": 4, "metrics": options["metrics"]}
    (path / "partition-000004").mkdir()
    received = arrays_of(work.format.specs) | (options["received"] or {})
    _write(path / "partition-000004/received.safetensors", received, about)
    with pytest.raises(RecordingError, match=words) as caught:
        list(read_checked(work, tmp_path))
    expected = path / "sent.safetensors" if file == "sent" else path / "partition-000004/received.safetensors"
    assert str(expected) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_array_is_named(tmp_path):
    work = work_of()
    folder = written(tmp_path, work)
    Recording(folder, 10**9).write_received(1, 4, {"fc5.weight": torch.ones(10, 84)}, EXAMPLES)
    with pytest.raises(RecordingError, match="lacks 'conv1"):
        list(read_checked(work, folder))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"images": torch.rand(2, 3, 8, 8)}, r"expected float32 of shape \[1, 8, 8\] each"),
        ({"images": torch.rand(2, 1, 8, 8).double()}, "float64"),
        ({"labels": torch.tensor([0, 10])}, "expected labels of 10 classes"),
        ({"labels": torch.tensor([0.0, 1.0])}, "expected labels of 10 classes"),
        ({"biases": {"fc5.bias": torch.ones(10)}}, "lacks 'fc3.bias'"),
        ({"trained_biases": {}}, None),
    ],
)
def test_a_truth_that_is_not_of_the_run_is_named(tmp_path, wrong, words):
    work = work_of()
    biases = {name: torch.ones_like(work.initial_state[name]) for name in work.format.private_names}
    right = {"images": torch.rand(2, 1, 8, 8), "labels": torch.tensor([0, 9])}
    truth = GroundTruth(**{**right, "biases": biases, "trained_biases": biases, **wrong})
    write_truth(tmp_path / "truth", 1, 4, truth)
    if words is None:
        assert torch.equal(read_checked_truth(work, tmp_path, 1, 4).images, truth.images)
        return
    with pytest.raises(RecordingError, match=words) as caught:
        read_checked_truth(work, tmp_path, 1, 4)
    assert "partition-000004/truth.safetensors" in str(caught.value)
