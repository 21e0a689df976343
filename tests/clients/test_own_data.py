"""A client whose data are its own: what it trains and tests on, what it tells at the opening question, and what not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from own_data import OPTIONS, lay_arrays, lay_pictures

from clients.client_app import app
from clients.participant import UnfitDataError, client_data
from snnfl.config import Config, ConfigError, compose, flatten
from snnfl.data import register
from snnfl.data.own import read_own
from snnfl.registry import forget
from snnfl.workspace import workspace

Ask = Callable[..., Message]


def configured(*options: str) -> Config:
    small = ["data.clients=3", "training.epochs=1", "conversion.steps=8", "conversion.calibration_images=32"]
    return compose(None, [*OPTIONS, *small, *options])


def context_at(config: Config, partition: int = 0, **node: object) -> Context:
    keys = {name.replace("_", "-"): value for name, value in node.items()}
    return Context(1, 100, {"partition-id": partition, **keys}, RecordDict(), flatten(config))  # type: ignore[dict-item]


def test_a_node_holds_what_its_configuration_names(tmp_path: Path) -> None:
    place = lay_arrays(tmp_path / "ours.npz", range(100))
    named = lay_arrays(tmp_path / "clients" / "a.npz", range(100, 300)).parents[1]
    config = configured(f"data.root={named}", "data.clients=1")
    found = client_data(context_at(config, data_path=str(place)))
    assert found.dataset is read_own(place, config.data)
    assert torch.equal(found.labels, found.dataset.train_labels)
    assert len(client_data(context_at(config, simulated=True)).labels) == 160
    for not_simulated in (False, "true", 1):  # only a simulation's engine says so
        with pytest.raises(ConfigError, match=r"this node names no data of its own; start it with --node-config"):
            client_data(context_at(config, simulated=not_simulated))


def test_the_answer_to_the_opening_question_is_two_numbers(tmp_path: Path, ask: Ask) -> None:
    place = lay_pictures(tmp_path / "ours", range(100))
    reply = app(ask("query"), context_at(configured(), 2, data_path=str(place)))
    assert list(reply.content) == ["metrics"]
    assert dict(reply.content["metrics"]) == {"partition-id": 2, "num-examples": 80, "test-examples": 20}


def test_a_refusal_tells_no_path_and_the_log_of_the_node_does(
    tmp_path: Path, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    place = lay_pictures(tmp_path / "ours", range(100))
    (place / "two").rename(place / "secret")
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        with pytest.raises(
            UnfitDataError, match=r"^it has a class that is none of data.classes=.*own log says"
        ) as error:
            app(ask("query"), context_at(configured(), data_path=str(place)))
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)
    assert "secret" not in str(error.value)
    assert str(tmp_path) not in str(error.value)
    assert f"{place}: 'secret' is none of data.classes" in caplog.text


def test_too_few_samples_are_refused_without_their_number(tmp_path: Path, ask: Ask) -> None:
    place = lay_arrays(tmp_path / "few.npz", range(11))
    with pytest.raises(ConfigError, match=r"^data\.minimum_samples=10: it has fewer than 10 training samples$"):
        app(ask("query"), context_at(configured(), data_path=str(place)))
    other = lay_arrays(tmp_path / "one.npz", range(2))
    with pytest.raises(ConfigError, match=r"fewer than 2 training samples"):
        app(ask("query"), context_at(configured("data.minimum_samples=1"), data_path=str(other)))


@pytest.mark.parametrize("options", [[], ["poisoning.attack=label_flip", "poisoning.target=1"], ["strategy.name=solo"]])
def test_a_client_trains_calibrates_and_tests_as_one_that_shares_the_same_data(
    tmp_path: Path, ask: Ask, options: list[str]
) -> None:
    place = lay_arrays(tmp_path / "ours.npz", range(300))
    own = configured("data.clients=1", *options)
    register("the_same")(lambda root: read_own(place, own.data))
    try:
        shared = compose(own, {"data": {**dict.fromkeys(("classes", "shape"), ()), "source": "the_same"}})
        replies = []
        for config, context in ((own, context_at(own, data_path=str(place))), (shared, context_at(shared))):
            sent = workspace(config).initial_state.items()
            state = {name: array.clone() for name, array in sent if name not in workspace(config).format.private_names}
            train = app(ask("train", state), context)
            replies.append((train, app(ask("evaluate", state), context)))
    finally:
        forget([("data set", "the_same", __name__)])
    (ours, tested), (theirs, expected) = replies
    assert ours.content["metrics"]["num-examples"] == 240
    assert tested.content["metrics"]["num-examples"] == 60
    assert dict(tested.content["metrics"]) == dict(expected.content["metrics"])
    seconds = {name for name in ours.content["metrics"] if name.startswith("seconds")}
    for name in ours.content["metrics"].keys() - seconds:
        assert ours.content["metrics"][name] == theirs.content["metrics"][name]
    if "arrays" in theirs.content:
        mine, other = ours.content["arrays"], theirs.content["arrays"]
        assert mine.keys() == other.keys()
        assert all((mine[name].numpy() == other[name].numpy()).all() for name in mine)
