"""What is said of another app is known to the attacker, what isn't said is not, and what doesn't fit is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from snnfl.auditing.foreign import App, check_model, setting_of_app, unfit, unknown
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.recording import Received, Recording, RecordingError, write_truth
from snnfl.auditing.victims import Scope, victims_of
from snnfl.config import ConfigError
from snnfl.threat import Exchange, ThreatModelError


def net():
    """With batch normalisation, whose counter is a whole number."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


APP = App(model=net(), input_shape=(1, 4, 4), mean=(0.5,), std=(0.25,))
FACTS = {"loss": "cross_entropy", "learning_rate": 0.1, "batch_size": 4, "epochs": 1, "momentum": 0.0}
SAID = replace(APP, **FACTS, weight_decay=0.0)


def state(**more):
    return {**net().state_dict(), **more}


def written(folder, *, sent=None, received=None, metrics=None, about=None):
    recording = Recording(folder, 10**9)
    recording.write_sent(1, state() if sent is None else sent, about)
    moved = {name: array + 1 for name, array in state().items()} if received is None else received
    recording.write_received(1, 7, moved, {"num-examples": 3} if metrics is None else metrics)
    recording.write_received(1, 9, {name: array + 2 for name, array in state().items()}, {"num-examples": 4})
    return folder


def victims(folder, app, **scope):
    return victims_of(setting_of_app(app, folder), folder, Scope(**scope))


def test_a_whole_state_dictionary_becomes_a_view(tmp_path):
    first, second = victims(written(tmp_path), SAID)
    view = first.view
    assert (first.partition, second.partition) == (7, 9)
    assert view.exchange.sent.keys() == state().keys() - {"1.num_batches_tracked"}
    assert torch.equal(view.exchange.received["4.weight"], state()["4.weight"] + 1)
    assert all(parameter.is_meta for parameter in view.model.parameters())
    assert (view.mean.tolist(), view.std.tolist(), view.input_shape) == ([0.5], [0.25], (1, 4, 4))
    known = view.knowledge
    assert (known.images, known.batch_size, known.epochs, known.learning_rate, known.steps) == (3, 3, 1, 0.1, 1)
    assert known.facts >= {"architecture", "loss", "optimizer", "biases", "update_statistics"}
    assert not known.facts & {"labels", "initial_weights", "thresholds"}
    assert (view.initial, view.labels, view.beyond) == (None, None, ())


def test_arrays_without_names_are_taken_in_their_order(tmp_path):
    numbered = {str(index): array.double() for index, array in enumerate(state().values())}
    first, _ = victims(written(tmp_path, sent=numbered, received=numbered), SAID)
    assert torch.equal(first.view.exchange.received["4.bias"], state()["4.bias"])


def test_what_nobody_says_is_unknown(tmp_path):
    first, _ = victims(written(tmp_path, metrics={}), APP)
    denied = {"loss", "images", "batch_size", "epochs", "learning_rate", "optimizer"}
    assert not first.view.knowledge.facts & denied


@pytest.mark.parametrize("missing", ["loss", *FACTS])
def test_a_single_option_that_is_missing_is_one_unknown(tmp_path, missing):
    app = replace(SAID, **{missing: None})
    fact = "optimizer" if missing == "momentum" else missing
    first, _ = victims(written(tmp_path), app)
    everything, _ = victims(tmp_path, SAID)
    assert everything.view.knowledge.facts - first.view.knowledge.facts == {fact}


def test_what_the_server_sent_along_it_knows(tmp_path):
    config = {"lr": 0.25, "local-epochs": 2, "batch-size": 2, "momentum": 0.0, "weight-decay": True}
    folder = written(tmp_path, about={"strategy": "FedAvg", "config": config})
    known = victims(folder, APP)[0].view.knowledge
    assert (known.learning_rate, known.epochs, known.batch_size, known.momentum) == (0.25, 2, 2, 0.0)
    assert known.weight_decay is None  # a truth value is no number
    assert victims(folder, SAID)[0].view.knowledge.learning_rate == 0.1
    assert setting_of_app(APP, folder).algorithm == "FedAvg"


@pytest.mark.parametrize("config", [None, [], {"lr": "fast", "epochs": 0, "batch_size": float("nan")}, {"lr": -1}])
def test_what_is_sent_along_and_no_number_says_nothing(tmp_path, config):
    folder = written(tmp_path, about={"config": config})
    assert not victims(folder, APP)[0].view.knowledge.facts & {"learning_rate", "epochs", "batch_size"}


@pytest.mark.parametrize("claim", [0, -1, 2.5, float("inf"), "many", True and 2**60])
def test_an_absurd_number_of_images_is_an_unknown_one(tmp_path, claim):
    assert victims(written(tmp_path, metrics={"num-examples": claim}), SAID)[0].view.knowledge.images is None


def test_a_claim_of_more_images_than_fit_in_memory_is_counted_without_listing_them(tmp_path):
    folder = written(tmp_path, metrics={"num-examples": 2.0**50})
    assert victims(folder, replace(SAID, batch_size=1))[0].view.knowledge.steps == 2**50


def received(**about):
    exchange = Exchange(server_round=1, sent={}, received={})
    return Received(server_round=1, partition=1, exchange=exchange, metrics={"num-examples": 9}, about=about)


@pytest.mark.parametrize("counts", [True, False])
def test_where_counters_count_into_the_norm_a_short_update_may_be_clipped(tmp_path, counts):
    app = SAID if counts else replace(SAID, model=nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    sent = dict(app.model.state_dict())
    moved = {name: array + 1e-3 for name, array in sent.items()}
    about = {"config": {"clipping_norm": 1.0}}
    folder = written(tmp_path, sent=sent, received=moved, about=about)
    assert victims(folder, app, partitions=frozenset({7}))[0].view.knowledge.clipped == counts


def test_options_that_would_tell_more_are_named():
    assert unknown(SAID, received()) == []
    expected = ["--loss", "--learning-rate", "--batch-size", "--epochs", "--momentum", "--weight-decay"]
    assert unknown(APP, received()) == expected
    assert unknown(APP, received(config={"lr": 0.1})) == [name for name in expected if name != "--learning-rate"]


def test_training_that_attacks_do_not_repeat_is_beyond_them(tmp_path):
    folder = written(tmp_path, metrics={"num-examples": 9})
    first, second = victims(folder, SAID)
    assert first.view.beyond == ("a last batch of one image (9 in batches of 4)",)  # ours would join the one before
    assert second.view.beyond == ()
    assert victims(folder, replace(SAID, optimizer="adam"))[1].view.beyond == ("--optimizer adam",)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (
            {"4.weight": torch.ones(3, 9)},
            r"sent\.safetensors: '4\.weight' doesn't fit --model: expected float32\[3,",
        ),
        ({"5.weight": torch.ones(3)}, r"sent\.safetensors: holds '5\.weight', which --model hasn't"),
        ({"1.running_var": -torch.ones(2)}, "expected no negative value"),
    ],
)
def test_a_model_of_other_arrays_names_the_first(tmp_path, sent, words):
    with pytest.raises(RecordingError, match=words):
        victims(written(tmp_path, sent=state(**sent)), SAID)


def test_a_model_with_more_arrays_names_the_first(tmp_path):
    few = {name: array for name, array in state().items() if not name.startswith("1.")}
    with pytest.raises(RecordingError, match=r"lacks '1\.weight', which --model has"):
        victims(written(tmp_path, sent=few), SAID)


@pytest.mark.parametrize(
    ("received", "words"),
    [
        ({"anything": torch.ones(1)}, "lacks '0.weight', which --model has"),
        (state(**{"0.bias": torch.full_like(state()["0.bias"], torch.nan)}), "'0.bias' doesn't fit --model: "),
    ],
    ids=["another array", "not finite"],
)
def test_a_client_that_sends_something_else_costs_the_others_nothing_and_is_named(tmp_path, received, words):
    folder = written(tmp_path, received=received)
    assert [victim.partition for victim in victims(folder, SAID)] == [9]
    (line,) = unfit(SAID, folder, frozenset())
    assert f"round 1, node 7: {words}" in line


class WithBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 3)
        self.register_buffer("shift", torch.ones(1))

    def forward(self, images):
        return self.fc(images.flatten(1)) + self.shift


class Heads(nn.Module):
    """Two heads, of which one makes the logits; an embedding or a shared weight before them."""

    def __init__(self, *, first="fc", called=False, embeds=False, shares=False):
        super().__init__()
        self.called, self.embeds = called, embeds
        self.body, self.again = nn.Linear(16, 16), nn.Linear(16, 16)
        self.levels = nn.Embedding(17, 1)
        if shares:
            self.again.weight = self.body.weight
        for name in (first, "aux" if first == "fc" else "fc"):
            setattr(self, name, nn.Linear(16, 3))

    def forward(self, images):
        flat = images.flatten(1)
        if self.embeds:
            flat = self.levels((flat * 16).long().clamp(0, 16)).flatten(1)
        hidden = torch.relu(self.again(torch.relu(self.body(flat))))
        return self.fc(hidden) + (0 * self.aux(hidden) if self.called else 0)


class OverTime(nn.Module):
    """Each row of an image has logits, and their mean counts."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, images):
        return self.fc(images[:, 0]).mean(1)


@pytest.mark.parametrize("model", [Heads(first="aux"), Heads(first="aux", called=True), OverTime()])
def test_a_model_whose_last_linear_layer_makes_the_logits_is_taken(model):
    check_model(replace(SAID, model=model))
    check_model(replace(SAID, model=nn.Sequential(model, nn.LogSoftmax(1))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": Heads()}, "'aux', its last linear layer, doesn't make its logits"),
        ({"model": Heads(called=True)}, "'aux', its last linear layer, doesn't make its logits"),
        ({"model": Heads(first="aux", embeds=True)}, "its logits have no derivative by the pixels"),
        ({"model": Heads(first="aux", shares=True)}, "layers share, as body.weight and again.weight do"),
        ({"input_shape": (1, 5, 5)}, "--input-shape 1,5,5: --model fails on it"),
        ({"mean": (0.1, 0.2)}, "--mean: 2 values for 1 channels"),
        ({"std": (0.0,)}, "expected finite numbers, and std above 0"),
        ({"model": WithBuffer()}, "attacks cannot repeat its buffer 'shift'"),
        ({"model": nn.Conv2d(1, 3, 4)}, "--model fails on it"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Unflatten(1, (3, 1)))}, r"makes \[2, 3, 1\]"),
    ],
)
def test_a_model_that_attacks_cannot_repeat_is_refused_in_one_line(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        setting_of_app(replace(SAID, **change), written(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_the_truth_of_a_node_is_its_own_and_checked(tmp_path):
    folder, truth = written(tmp_path / "recorded"), tmp_path / "truth"
    app = replace(SAID, truth=truth)
    with pytest.raises(ConfigError, match="truth: no such folder"):
        victims(folder, app)
    truth.mkdir()
    assert victims(folder, app)[0].truth is None
    with pytest.raises(ThreatModelError, match="no ground truth"):
        victims(folder, app, labels=True)
    write_truth(truth, 1, 7, GroundTruth(images=torch.rand(3, 1, 4, 4), labels=torch.tensor([0, 1, 2])))
    first, second = victims(folder, app)
    assert (len(first.truth.images), second.truth) == (3, None)
    assert victims(folder, SAID)[0].truth is None
    beyond, undefined = torch.full((3, 1, 4, 4), 1.5), torch.full((3, 1, 4, 4), torch.nan)
    for images, labels in (
        (torch.rand(3, 1, 5, 5), [0, 1, 2]),
        (torch.rand(3, 1, 4, 4), [0, 1, 3]),
        (beyond, [0, 1, 2]),
        (undefined, [0, 1, 2]),
        (torch.rand(0, 1, 4, 4), []),
        (torch.tensor(0.5), 1),
    ):
        write_truth(truth, 1, 7, GroundTruth(images=images, labels=torch.tensor(labels)))
        with pytest.raises(RecordingError, match=r"partition-000007/truth\.safetensors"):
            victims(folder, app)


def test_public_images_are_shared_between_floors_and_candidates(tmp_path):
    app = replace(SAID, public=torch.rand(5, 1, 4, 4))
    data = setting_of_app(app, written(tmp_path)).dataset
    assert (len(data.test_images), len(data.train_images), data.scale, data.classes) == (3, 2, 255.0, 3)
    assert torch.allclose(data.pixels(data.test_images), app.public[:3], atol=0.002)
    none = setting_of_app(SAID, tmp_path).dataset
    assert (len(none.test_images), len(none.train_images), none.input_shape) == (0, 0, (1, 4, 4))


def test_a_recording_without_updates_says_so(tmp_path):
    Recording(tmp_path, 10**9).write_sent(1, state())
    with pytest.raises(RecordingError, match="no update is recorded"):
        setting_of_app(SAID, tmp_path)
