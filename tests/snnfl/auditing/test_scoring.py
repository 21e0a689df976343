"""Scores of every kind of data: what is right scores best, what needs no update is a floor, and nothing fails."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from snnfl import rng
from snnfl.auditing.extractor import Extractor, Recogniser
from snnfl.auditing.ground_truth import GroundTruth
from snnfl.auditing.measures import MEASURES
from snnfl.auditing.scoring import Scorer
from snnfl.auditing.victims import pixel_statistics
from snnfl.config import DataConfig
from snnfl.data import Dataset, load
from snnfl.data.augmentation import augment
from snnfl.metrics.augmented import Freedom
from snnfl.metrics.images import LARGEST_PSNR


def draw(*shape, seed=0):
    return torch.randn(shape, generator=rng.generator(0, "samples", seed))


def made(kind):
    """Make a data set of two classes of a kind, that of its shape except for sound."""
    labels = torch.arange(60) % 2
    if kind == "images":
        return load(DataConfig(source="digits"))
    if kind == "events":
        rates = torch.rand(2, 1, 2, 6, 6, generator=rng.generator(0, "rates"))[labels] * 0.3
        samples = torch.bernoulli(rates.expand(60, 5, 2, 6, 6), generator=rng.generator(0, "events")).to(torch.uint8)
        mean, std = torch.zeros(2), torch.ones(2)
    elif kind == "table":
        samples = draw(60, 7) + 2 * labels[:, None]
        mean, std = samples.mean(0), samples.std(0)
    else:
        samples = torch.cumsum(draw(60, 16, 3), 1) + 3 * labels[:, None, None] - 4
        mean, std = samples.mean((0, 1)), samples.std((0, 1))
    return Dataset(
        name=kind, train_images=samples[:40], train_labels=labels[:40], test_images=samples[40:],
        test_labels=labels[40:], class_names=("a", "b"), mean=mean, std=std, sequence=kind not in ("table",),
        stated_kind="audio" if kind == "audio" else None,
    )  # fmt: skip


def scorer(kind):
    data = made(kind)
    return Scorer(SimpleNamespace(dataset=data, model=torch.nn.Identity(), freedom=None))


def scored(judge, found, labels=None):
    data = judge.setting.dataset
    truth = GroundTruth(
        images=data.pixels(data.train_images[:2]), labels=data.train_labels[:2], biases={}, trained_biases={}
    )
    result = SimpleNamespace(images=found, labels=truth.labels, curve=((0, 1.0),), trail=(found,))
    return judge.score(result, truth, {})


KINDS = ("images", "events", "audio", "series", "table")


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_knows_its_kind_by_its_shape(kind):
    assert made(kind).kind == kind
    assert set(MEASURES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_within_0_and_1_and_turn_back_into_stored_values(kind):
    data = made(kind)
    pixels = data.pixels(data.train_images)
    assert 0 <= float(pixels.min()) < float(pixels.max()) == 1
    torch.testing.assert_close(data.stored(pixels), data.train_images.float())
    mean, std = pixel_statistics(data)
    shape = [-1] + [1] * (data.train_images.dim() - (3 if data.sequence else 2))
    torch.testing.assert_close(
        (pixels - mean.view(shape)) / std.view(shape), data.normalise(data.train_images), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_beats_every_floor_and_a_stranger_none(kind):
    judge = scorer(kind)
    data = judge.setting.dataset
    right = scored(judge, data.pixels(data.train_images[:2]))
    wrong = scored(judge, data.pixels(data.train_images[[7, 8]]))  # one of each class, but others
    assert (right.values["identified"], wrong.values["identified"]) == (1, 0)
    for metric in (m for m in MEASURES[kind].judged if m.name != "recognised"):  # of a class, not of a sample
        assert all(metric.gain(right.values[metric.name], floor[metric.name]) >= 0 for floor in right.floors.values())
        assert metric.gain(right.values[metric.name], wrong.values[metric.name]) >= 0
    first = MEASURES[kind].metrics[0]
    assert all(first.gain(right.values[first.name], floor[first.name]) > 0 for floor in right.floors.values())
    assert right.curve == ((0, pytest.approx(right.values[first.name])),)


@pytest.mark.parametrize("kind", KINDS)
def test_reconstructions_in_another_order_score_the_same_and_a_missing_one_is_a_blank(kind):
    judge = scorer(kind)
    true = judge.setting.dataset.pixels(judge.setting.dataset.train_images[:2])
    assert scored(judge, true.flip(0)).values == scored(judge, true).values
    half = scored(judge, true[:1])
    assert torch.equal(half.found[1], torch.full_like(true[1], MEASURES[kind].blank))


def test_the_mean_recording_has_as_many_events_as_one_has_on_average():
    judge = scorer("events")
    floors = MEASURES["events"].floors(torch.zeros(2, 5, 2, 6, 6), judge.public)
    events = (floors["mean_recording"] > 0).float().flatten(1).sum(1)
    assert events.tolist() == [round(float((judge.public > 0).flatten(1).sum(1).float().mean()))] * 2
    assert not floors["empty"].any()
    nothing = MEASURES["events"].floors(torch.zeros(1, 5, 2, 6, 6), torch.zeros(3, 5, 2, 6, 6))
    assert not nothing["mean_recording"].any()


def test_events_of_a_line_of_sensors_are_scored():
    data = made("events")
    train, test = data.train_images.flatten(2), data.test_images.flatten(2)
    line = replace(data, train_images=train, test_images=test, mean=torch.zeros(72), std=torch.ones(72))
    judge = Scorer(SimpleNamespace(dataset=line, model=torch.nn.Identity(), freedom=None))
    assert line.kind == "events"
    assert scored(judge, line.pixels(line.train_images[:2])).values["f1"] == 1


def test_sound_is_recognised_by_a_classifier_that_never_saw_it():
    judge = scorer("audio")
    data = judge.setting.dataset
    right, swapped = (data.pixels(data.train_images[chosen]) for chosen in ([4, 7], [7, 4]))
    told = judge.recogniser(data.pixels(data.train_images)) == data.train_labels
    assert told.float().mean() > 0.8
    assert scored(judge, right).values["recognised"] in (0.5, 1.0)
    flipped = judge.recogniser(swapped)
    assert flipped.tolist() == judge.recogniser(right).flip(0).tolist()


def test_noisy_originals_are_identified_and_guesses_are_not():
    data = load(DataConfig(source="digits"))
    judge = Scorer(SimpleNamespace(dataset=data, model=torch.nn.Identity(), freedom=None))
    true = data.pixels(data.train_images[:40])
    noisy = (true + 0.1 * draw(*true.shape)).clamp(0, 1)
    told = judge._identified([noisy, true.mean(0, keepdim=True).expand_as(true)], true, judge.extractor.features)
    assert told[0] >= 0.975
    assert told[1] <= 0.05


def test_the_extractor_depends_on_public_samples_alone_and_is_the_same_each_time():
    public = torch.rand(30, 2, 5, generator=rng.generator(0, "public"))
    first, second = Extractor(public), Extractor(public)
    sample = torch.rand(4, 2, 5, generator=rng.generator(0, "sample"))
    assert torch.equal(first.features(sample), second.features(sample))
    assert first.name == "10 principal components of public samples"
    scores = first.features(public)
    covariance = scores.T @ scores / len(public)
    torch.testing.assert_close(covariance, torch.diag(covariance.diagonal()), atol=1e-5, rtol=0)
    variances = (public.flatten(1) - public.flatten(1).mean(0)).svd().S.square() / len(public)
    torch.testing.assert_close(covariance.diagonal(), variances.sqrt(), rtol=1e-3, atol=1e-5)


def test_equal_public_samples_give_an_extractor_all_the_same():
    extractor = Extractor(torch.ones(5, 3))
    assert torch.isfinite(extractor.features(torch.zeros(2, 3))).all()
    assert Recogniser(extractor, torch.ones(5, 3), torch.zeros(5, dtype=torch.int64), 2)(torch.ones(1, 3)).tolist() == [
        0
    ]


@pytest.mark.parametrize("public", [0, 3])
def test_features_of_large_samples_fit_into_memory(public):
    extractor = Extractor(torch.rand(public, 500_000, generator=rng.generator(0, "public")))
    assert extractor.features(torch.ones(1, 500_000)).shape == (1, 2 if public else 500_000)


def test_what_a_client_augmented_is_found_where_it_moved_it_and_a_guess_has_the_same_freedom():
    data = load(DataConfig(source="digits"))
    true, freedom = data.pixels(data.train_images[:2]), Freedom(padding=data.padding, flip=data.flip)
    trained = augment(true, rng.generator(3, "draw"), padding=data.padding, flip=data.flip)
    assert not torch.equal(trained, true)
    strict, free = (
        scored(Scorer(SimpleNamespace(dataset=data, model=torch.nn.Identity(), freedom=each)), trained)
        for each in (None, freedom)
    )
    assert free.values["psnr"] == LARGEST_PSNR
    assert strict.values["psnr"] < 40
    assert free.values["identified"] == 1.0
    for name, floor in strict.floors.items():
        assert free.floors[name]["psnr"] >= floor["psnr"]
