"""Around any strategy of any app: the run is as it was, and what travelled is on the disk, whatever clients send."""

from __future__ import annotations

import io
import pickle
import re
import stat

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
)

from experiments.engines.in_process import FIRST_NODE_ID, run_in_process
from snnfl.auditing.recording import Recording, read_recording, read_truth, truth_path
from snnfl.flower import Audited, ground_truth
from strategies.population import seeded_draws

SENT = {"fc.weight": torch.arange(6.0).view(2, 3), "norm.num_batches_tracked": torch.tensor(5)}
FLOATS = {"fc.weight": SENT["fc.weight"]}


def honest(message, context):
    """Add 1, 2 or 3, as training might."""
    arrays = message.content["arrays"].to_torch_state_dict()
    moved = {name: array + context.node_config["partition-id"] + 1 for name, array in arrays.items()}
    metrics = MetricRecord({"num-examples": 2, "loss": 0.5})
    return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)


def play(strategy, answer=honest, *, arrays=SENT, rounds=1, mods=(), node_config=None, clients=3):
    """Play a federation; return what the strategy's ``start`` does."""
    client_app, server_app, results = ClientApp(mods=list(mods)), ServerApp(), []
    client_app.train()(answer)
    client_app.evaluate()(answer)

    @server_app.main()
    def main(grid, context):
        config = ConfigRecord({"lr": 0.1, "note": "x" * 1000, "list": [1, 2]})
        start = {"initial_arrays": ArrayRecord(dict(arrays)), "num_rounds": rounds, "train_config": config}
        results.append(strategy.start(grid, **start))

    with seeded_draws(0, 0, "selection"):  # floating-point sums depend on the order of the nodes
        run_in_process(server_app, client_app, run_config={}, clients=clients, node_config=node_config)
    return results[0]


def recorded(folder):
    return {(r.server_round, r.partition - FIRST_NODE_ID): r for r in read_recording(folder)}


def test_what_travels_is_recorded_with_what_is_said_beside_it(tmp_path):
    play(Audited(FedAvg(), tmp_path), rounds=2)
    found = recorded(tmp_path)
    assert sorted(found) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    first = found[1, 2]
    assert first.exchange.sent.keys() == SENT.keys()
    assert all(torch.equal(first.exchange.sent[name], array) for name, array in SENT.items())
    assert all(torch.equal(first.exchange.received[name], array + 3) for name, array in SENT.items())
    assert first.exchange.received["norm.num_batches_tracked"].dtype == torch.int64
    assert first.metrics == {"num-examples": 2, "loss": 0.5}
    assert first.about == {"strategy": "FedAvg", "config": {"lr": 0.1, "server-round": 1}}
    assert torch.equal(found[2, 0].exchange.sent["fc.weight"], SENT["fc.weight"] + 2)  # the mean of 1, 2 and 3


@pytest.mark.parametrize(
    "made",
    [
        FedAvg,
        FedAvgM,
        FedMedian,
        FedTrimmedAvg,
        FedAdam,
        lambda: FedAvg(weighted_by_key="loss"),
        lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 1.0, 3),
    ],
)
def test_the_weights_are_those_of_the_strategy_alone(tmp_path, made):
    expected = play(made(), arrays=FLOATS, rounds=3)
    found = play(Audited(made(), tmp_path), arrays=FLOATS, rounds=3)
    for name, array in expected.arrays.items():
        assert found.arrays[name].data == array.data
    assert found.train_metrics_clientapp == expected.train_metrics_clientapp
    assert found.evaluate_metrics_clientapp == expected.evaluate_metrics_clientapp
    assert len(recorded(tmp_path)) == 9


def test_it_may_stand_within_a_wrapper(tmp_path):
    play(DifferentialPrivacyServerSideFixedClipping(Audited(FedAvg(), tmp_path), 0.0, 1.0, 3), arrays=FLOATS)
    assert len(recorded(tmp_path)) == 3


class Saving(FedAvg):
    """A strategy with a loop and attributes of its own, as Flower's advanced example has."""

    def into(self, lines):
        self.lines = lines

    def start(self, grid, **options):
        self.lines.append("start")
        self.best = 1
        result = super().start(grid, **options)
        self.lines.append("end")
        return result


def test_a_loop_of_the_strategys_own_is_played(tmp_path):
    strategy, lines = Saving(), []
    audited = Audited(strategy, tmp_path)
    audited.into(lines)
    play(audited)
    assert (lines, audited.best, len(recorded(tmp_path))) == (["start", "end"], 1, 3)
    assert not {"configure_train", "aggregate_train"} & vars(strategy).keys()
    audited.best = 2
    assert (strategy.best, "best" in vars(audited)) == (2, False)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = audited.nothing_of_this_name


class Personal(FedAvg):
    """Sends each client arrays of its own."""

    def configure_train(self, server_round, arrays, config, grid):
        for node in grid.get_node_ids():
            own = {name: array + node for name, array in FLOATS.items()}
            yield Message(RecordDict({"arrays": ArrayRecord(own), "config": config}), node, "train")


def test_what_one_node_alone_is_sent_is_recorded_as_its_own(tmp_path):
    play(Audited(Personal(), tmp_path))
    for (_, partition), each in recorded(tmp_path).items():
        node = FIRST_NODE_ID + partition
        assert torch.equal(each.exchange.sent["fc.weight"], FLOATS["fc.weight"] + node)
        assert torch.equal(each.exchange.received["fc.weight"], FLOATS["fc.weight"] + node + partition + 1)


def test_rounds_nodes_and_size_are_chosen(tmp_path, caplog):
    play(Audited(FedAvg(), tmp_path / "a", rounds=[2], nodes=[FIRST_NODE_ID + 1]), rounds=3)
    assert sorted(recorded(tmp_path / "a")) == [(2, 1)]
    play(Audited(FedAvg(), tmp_path / "b", max_bytes=70), rounds=3)  # 32 bytes each way
    assert len(recorded(tmp_path / "b")) == 1
    assert "the recording for the audit ends here, the run goes on" in caplog.text


def test_an_earlier_recording_is_left_as_it_is(tmp_path, caplog):
    for _ in range(3):
        play(Audited(FedAvg(), tmp_path / "recorded"))
    assert [len(recorded(tmp_path / name)) for name in ("recorded", "recorded-2", "recorded-3")] == [3, 3, 3]
    assert f"recorded in {tmp_path / 'recorded-3'}" in caplog.text


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    result = play(Audited(FedAvg(), tmp_path / "file" / "recorded"), arrays=FLOATS)
    assert torch.equal(result.arrays.to_torch_state_dict()["fc.weight"], FLOATS["fc.weight"] + 2)
    assert "the run goes on" in caplog.text


class Careful(FedAvg):
    """Aggregates what the first client sends, so that the others may send what they like."""

    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, [r for r in replies if r.metadata.src_node_id == FIRST_NODE_ID])


class Boom:
    def __reduce__(self):
        return (print, ("a pickle of a client ran",))


def claimed(shape, kind="<f8"):
    """Return 16 bytes under a header that says something of them."""
    stream = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return Array("float32", (2, 3), "numpy.ndarray", stream.getvalue() + bytes(16))


HOSTILE = {
    "a pickle": Array("float32", (2, 3), "numpy.ndarray", pickle.dumps(Boom())),
    "an array of objects": claimed((2,), "|O"),
    "a lie about its size": claimed((999_999_999_999,)),
    "a negative size": claimed((-2,)),
    "no header": Array("float32", (2, 3), "numpy.ndarray", b"\x93NUMPY\x01\x00" + b"(" * 1000),
    "nothing": Array("float32", (2, 3), "numpy.ndarray", b""),
    "not a number": Array(np.full((2, 3), np.nan, np.float32)),
    "far too much": Array(np.zeros(2_000_000, np.float32)),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_arrays_are_neither_recorded_nor_an_end(tmp_path, caplog, capsys, kind):
    def answer(message, context):
        if context.node_config["partition-id"] == 0:
            return honest(message, context)
        content = RecordDict({"arrays": ArrayRecord({"fc.weight\n\x1b": HOSTILE[kind]}), "metrics": MetricRecord()})
        return Message(content, reply_to=message)

    result = play(Audited(Careful(fraction_evaluate=0.0), tmp_path), answer, arrays=FLOATS)
    assert torch.equal(result.arrays.to_torch_state_dict()["fc.weight"], FLOATS["fc.weight"] + 1)
    assert sorted(recorded(tmp_path)) == [(1, 0)]
    told = [line.getMessage() for line in caplog.records if "isn't recorded" in line.getMessage()]
    assert len(told) == 2
    assert all(len(line.splitlines()) == 1 and line.isprintable() for line in told)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"arrays": MetricRecord({"a": 1})}),
        RecordDict({"arrays": ArrayRecord()}),
        RecordDict({"weights": ArrayRecord(FLOATS)}),
    ],
)
def test_a_reply_without_arrays_is_not_recorded(tmp_path, content):
    def answer(message, context):
        own = context.node_config["partition-id"] == 0
        return honest(message, context) if own else Message(content, reply_to=message)

    play(Audited(Careful(fraction_evaluate=0.0), tmp_path), answer, arrays=FLOATS)
    assert sorted(recorded(tmp_path)) == [(1, 0)]


def test_what_a_client_raises_is_the_strategys_affair(tmp_path):
    def answer(message, context):
        if context.node_config["partition-id"]:
            raise RuntimeError
        return honest(message, context)

    play(Audited(Careful(fraction_evaluate=0.0), tmp_path), answer, arrays=FLOATS)
    assert sorted(recorded(tmp_path)) == [(1, 0)]


def test_a_fault_of_our_own_ends_no_run(tmp_path, monkeypatch, caplog):
    def broken(*arguments):
        raise KeyError("ours")

    monkeypatch.setattr(Recording, "write_sent", broken)
    monkeypatch.setattr(Recording, "write_received", broken)
    result = play(Audited(FedAvg(), tmp_path), arrays=FLOATS)
    assert result.arrays is not None
    assert "round 1: what is sent isn't recorded: 'ours'" in caplog.text


IMAGES, LABELS = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1])


def kept(tmp_path, images=IMAGES, labels=LABELS, **arguments):
    """Play with a mod; return what the first client keeps."""
    seen = []

    def answer(message, context):
        reply = honest(message, context)
        seen.append(reply)
        return reply

    play(FedAvg(), answer, arrays=FLOATS, mods=[ground_truth(lambda context: (images, labels))], **arguments)
    assert all({*reply.content} == {"arrays", "metrics"} for reply in seen)
    return read_truth(tmp_path, 1, FIRST_NODE_ID)


def test_a_node_keeps_its_truth_where_its_owner_says_so(tmp_path):
    truth = kept(tmp_path, node_config={"truth-directory": str(tmp_path)})
    assert torch.equal(truth.images, IMAGES)
    assert torch.equal(truth.labels, LABELS)
    assert stat.S_IMODE(truth_path(tmp_path, 1, FIRST_NODE_ID).stat().st_mode) == 0o600
    assert len(list(tmp_path.rglob("truth.safetensors"))) == 3


def test_without_a_folder_nothing_is_kept(tmp_path):
    assert kept(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_of_many_images_the_labels_alone_are_kept(tmp_path):
    folder = {"truth-directory": str(tmp_path)}
    truth = kept(tmp_path, torch.zeros(1025, 1, 2, 2), torch.zeros(1025).long(), node_config=folder)
    assert (len(truth.images), len(truth.labels)) == (0, 1025)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (IMAGES * 2 - 1, LABELS, r"expected pixels in \[0, 1\]"),
        (IMAGES, LABELS[:1], "expected as many of either"),
        (None, None, "isn't kept: "),
    ],
)
def test_a_truth_that_is_none_is_a_warning(tmp_path, caplog, images, labels, words):
    assert kept(tmp_path, images, labels, node_config={"truth-directory": str(tmp_path)}) is None
    lines = [record.getMessage() for record in caplog.records if "truth" in record.getMessage()]
    assert len(lines) == 3

    assert all(re.search(words, line) for line in lines)
