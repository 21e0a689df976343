from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfl.config import ConfigError, DataConfig
from snnfl.data.events import Events, Frames, event_dataset, frames_of, read_frames


def recording(events):
    times, channels, rows, columns = np.array(events, dtype=np.int64).T
    return Events(times=times, channels=channels, rows=rows, columns=columns)


def counted_one_by_one(events, bins, binning, blocks):
    """Count as the definition says, an event at a time."""
    first, last = min(t for t, *_ in events), max(t for t, *_ in events)
    counts = np.zeros((bins, 2, 8 // blocks, 8 // blocks), dtype=np.int64)
    for place, (time, channel, row, column) in enumerate(events):
        share = (time - first) / (last - first + 1) if binning == "time" else place / len(events)
        counts[int(share * bins + 1e-9), channel, row // blocks, column // blocks] += 1
    return np.minimum(counts, 255)


EVENT = st.tuples(st.integers(0, 1000), st.integers(0, 1), st.integers(0, 7), st.integers(0, 7))


@given(
    events=st.lists(EVENT, min_size=1, max_size=60),
    bins=st.integers(1, 12),
    binning=st.sampled_from(["time", "count"]),
    blocks=st.sampled_from([1, 2, 4, 8]),
)
def test_frames_are_what_a_loop_counts(events, bins, binning, blocks):
    counts = Frames(bins, binning, (2, 8, 8), 8 // blocks).count(recording(events))
    assert counts.dtype == np.uint8
    assert counts.sum() == len(events)
    np.testing.assert_array_equal(counts, counted_one_by_one(events, bins, binning, blocks))


def test_a_count_stops_at_what_a_byte_holds():
    assert Frames(1, "time", (2, 8, 8), 8).count(recording([(0, 0, 0, 0)] * 300)).max() == 255


def test_a_line_of_sensors_has_one_dimension():
    events = recording([(0, 0, 0, 5), (9, 0, 0, 11)])
    counts = Frames(2, "time", (1, 1, 12), 6).count(events)
    assert counts.tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]


def test_a_resolution_divides_the_sensor():
    with pytest.raises(
        ConfigError, match=r"data.resolution=10: the sensor of nmnist is 34 wide, .*; take one of 34, 17, 2, 1"
    ):
        frames_of(DataConfig(source="nmnist", resolution=10), bins=10, sensor=(2, 34, 34))


def test_null_is_the_sources_own():
    assert frames_of(DataConfig(), bins=7, sensor=(2, 34, 34)) == Frames(7, "time", (2, 34, 34), 34)


def test_frames_are_read_once_for_each_way_to_make_them(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for place, path in enumerate(paths):
        path.write_text(str(place))
    read = []

    def reader(path: Path) -> Events:
        read.append(path)
        return recording([(0, int(path.read_text()), 0, 0)])

    for frames in (Frames(1, "time", (2, 2, 2), 2), Frames(2, "time", (2, 2, 2), 2), Frames(1, "time", (2, 2, 2), 2)):
        found = read_frames(2, partial(map, reader, paths), frames, paths=paths, folder=tmp_path)
        assert found[:, 0, :, 0, 0].tolist() == [[1, 0], [0, 1]]
    assert read == paths * 2


def test_models_get_the_counts_themselves():
    counts = torch.randint(9, (3, 4, 2, 16, 16)).to(torch.uint8)
    dataset = event_dataset(
        "x", counts, counts, train_labels=torch.zeros(3).long(), test_labels=torch.zeros(3).long(), class_names=("a",)
    )
    assert dataset.sequence
    assert dataset.padding == 2
    assert torch.equal(dataset.normalise(counts), counts.float())
