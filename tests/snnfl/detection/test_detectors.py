"""Each detector where it must find the attackers, where it must flag nobody, and on hostile values."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from networks import Plain, Residual, trained
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from snnfl import updates
from snnfl.config import ConfigError, ConversionConfig
from snnfl.conversion import fold
from snnfl.conversion.folding import NORM_FIELDS
from snnfl.detection import DetectorError, Findings, RoundView, detect, get_detector, names, register
from snnfl.detection.outliers import outliers
from snnfl.poisoning import forged
from snnfl.spiking import trace
from snnfl.training import exchangeable
from snnfl.updates import Converted

CLIENTS, ATTACKERS = 10, (2, 7)
MODEL = trained(Plain, dtype=torch.float32)
GRAPH = trace(MODEL)
SENT = {name: array.clone() for name, array in exchangeable(MODEL).items()}
FORMAT = Converted(GRAPH, SENT, ConversionConfig(), bias_back=True)
PLAIN = updates.Plain(SENT)
LEVELS = torch.linspace(0.99, 1.01, CLIENTS)
"""Honest clients differ in how far they moved: no one stands out."""

BY_CHANGE = ["cosine", "hdbscan", "krum", "norm"]
BY_THRESHOLD = ["log_thresholds", "thresholds"]

Arrays = dict[str, Tensor]


def client(number: int, *, step: float = 1.0, turn: float = 0.0, threshold: float = 1.0) -> Arrays:
    """Make a spiking update: a common change, one of the client's own, and thresholds about 1 and 2."""
    common, own = torch.Generator().manual_seed(99), torch.Generator().manual_seed(number)
    aside = torch.Generator().manual_seed(98)
    state = {}
    for name, array in SENT.items():
        shared = torch.randn(array.shape, generator=common)
        other = torch.randn(array.shape, generator=aside)
        noise = torch.randn(array.shape, generator=own)
        direction = (1 - turn) * shared + turn * other + 0.05 * noise
        state[name] = array + 0.1 * step * LEVELS[number] * direction
    update = fold(GRAPH, state)
    wobble = 1 + 0.02 * torch.randn(2, generator=own)
    update["relu.threshold"] = threshold * wobble[:1]
    update["relu_hidden.threshold"] = 2 * threshold * wobble[1:]
    return update


def round_of(**attack: float) -> list[Arrays]:
    return [client(n, **(attack if n in ATTACKERS else {})) for n in range(CLIENTS)]


def judge(name: str, updates: list[Arrays]) -> set[int]:
    verdict = detect(name, updates, SENT, examples=[10] * len(updates), format=FORMAT)
    assert verdict.detector == name
    assert verdict.scores.shape == verdict.flagged.shape == (len(updates),)
    return {int(n) for n in verdict.flagged.nonzero()}


def test_the_registry_holds_these() -> None:
    assert list(names()) == sorted(BY_CHANGE + BY_THRESHOLD)
    assert all(get_detector(name).source for name in names())
    with pytest.raises(ConfigError, match="detector 'krumm' is unknown; did you mean 'krum'"):
        get_detector("krumm")
    with pytest.raises(ValueError, match="'krum' is already registered"):
        register("krum", source="")(lambda view: Findings(scores=view.layers, flagged=view.layers))


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("thresholds", {"threshold": 3.0}),
        ("log_thresholds", {"threshold": 3.0}),
        ("norm", {"step": 5.0}),
        ("cosine", {"turn": 1.0}),
        ("krum", {"step": 5.0}),
        ("krum", {"turn": 1.0}),
        ("hdbscan", {"turn": 1.0}),
    ],
)
def test_attackers_are_found_and_nobody_else(name: str, attack: dict[str, float]) -> None:
    assert set(ATTACKERS) <= judge(name, round_of(**attack))
    if name != "hdbscan":  # which by design leaves honest clients out of its dense core
        assert judge(name, round_of(**attack)) == set(ATTACKERS)


@pytest.mark.parametrize("name", [name for name in BY_CHANGE + BY_THRESHOLD if name != "hdbscan"])
def test_a_clean_round_has_no_false_alarm(name: str) -> None:
    assert judge(name, round_of()) == set()


def test_hdbscan_flags_nobody_where_there_is_no_majority() -> None:
    orthogonal = [{name: torch.zeros_like(array) for name, array in SENT.items()} for _ in range(CLIENTS)]
    for number, update in enumerate(orthogonal):
        update["hidden.weight"][number // 8, number] = 1.0
    updates = [{name: SENT[name] + array for name, array in update.items()} for update in orthogonal]
    verdict = detect("hdbscan", updates, SENT, examples=[1] * CLIENTS, format=PLAIN)
    assert not verdict.flagged.any()


def test_what_a_detector_does_not_look_at_does_not_move_it() -> None:
    assert judge("norm", round_of(threshold=3.0)) == set()
    assert judge("thresholds", round_of(step=5.0, turn=1.0)) == set()
    assert judge("cosine", round_of(step=5.0)) == set()


def test_threshold_clustering_is_blind_to_a_forger_and_the_others_are_not() -> None:
    honest, poisoned = round_of(), round_of(turn=1.0, step=5.0, threshold=3.0)
    sent = [forged(p, h) if n in ATTACKERS else h for n, (p, h) in enumerate(zip(poisoned, honest, strict=True))]
    for name in BY_THRESHOLD:
        fooled = detect(name, sent, SENT, examples=[10] * CLIENTS, format=FORMAT)
        clean = detect(name, honest, SENT, examples=[10] * CLIENTS, format=FORMAT)
        assert torch.equal(fooled.scores, clean.scores)  # to the last bit: nothing is left to find
    assert judge("thresholds", poisoned) == judge("krum", sent) == judge("norm", sent) == set(ATTACKERS)


def test_the_score_is_the_distance_to_the_centre_of_the_larger_cluster() -> None:
    updates = round_of(threshold=3.0)
    verdict = detect("thresholds", updates, SENT, examples=[10] * CLIENTS, format=FORMAT)
    points = np.array([[float(u["relu.threshold"]), float(u["relu_hidden.threshold"])] for u in updates])
    honest = [n for n in range(CLIENTS) if n not in ATTACKERS]
    labels = AgglomerativeClustering(2, linkage="average").fit_predict(points)
    assert len(set(labels[honest])) == 1
    expected = np.linalg.norm(points - points[honest].mean(0), axis=1)
    np.testing.assert_allclose(verdict.scores, expected, rtol=1e-6)
    np.testing.assert_allclose(verdict.points, points, rtol=1e-6)  # the last two layers, Fig. 3B


def test_krum_and_cosine_are_the_papers_loops() -> None:
    updates, examples = round_of(turn=0.5), list(range(1, CLIENTS + 1))
    changes = RoundView(updates=updates, sent=SENT, examples=examples, format=FORMAT).changes.numpy()
    krum = detect("krum", updates, SENT, examples=examples, format=FORMAT).scores
    f = max(f for f in range(CLIENTS) if 2 * f + 2 < CLIENTS)
    for i in range(CLIENTS):
        squares = sorted(((changes[i] - changes[j]) ** 2).sum() for j in range(CLIENTS) if j != i)
        assert krum[i].item() == pytest.approx(sum(squares[: CLIENTS - f - 2]))
    mean = np.average(changes, axis=0, weights=examples)
    cosine = detect("cosine", updates, SENT, examples=examples, format=FORMAT).scores
    for i, change in enumerate(changes):
        similarity = change @ mean / np.linalg.norm(change) / np.linalg.norm(mean)
        assert cosine[i].item() == pytest.approx(1 - similarity)


def test_changes_are_those_of_the_recovered_weights() -> None:
    model = trained(Residual, dtype=torch.float32)
    graph = trace(model)
    state = {name: array.clone() for name, array in exchangeable(model).items()}
    moved = {name: array + 0.25 if not name.endswith("running_var") else array for name, array in state.items()}
    update = fold(graph, moved) | {
        f"{node.norm}.{short}": moved[f"{node.norm}.{name}"]
        for node in graph.affines
        if node.norm
        for short, name in NORM_FIELDS.items()
    }
    private = {f"{node.name}.bias" for node in graph.affines}
    sent = {name: array for name, array in state.items() if name not in private}
    view = RoundView(updates=[update], sent=sent, examples=[1], format=Converted(graph, state, ConversionConfig()))
    weights = sum(array.numel() for name, array in sent.items() if ".running_" not in name)
    assert view.changes.shape == (1, weights)
    torch.testing.assert_close(view.changes, torch.full_like(view.changes, 0.25), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BY_THRESHOLD)
def test_a_plain_run_has_no_thresholds(name: str) -> None:
    with pytest.raises(ConfigError, match=f"detector {name}: these updates hold no thresholds"):
        detect(name, [SENT] * 4, SENT, examples=[1] * 4, format=PLAIN)


@pytest.mark.parametrize("name", BY_CHANGE)
def test_plain_updates_are_judged_too(name: str) -> None:
    updates = [{k: a + 0.1 * LEVELS[n] * (1 + 0.01 * n) for k, a in SENT.items()} for n in range(CLIENTS)]
    updates[4] = {k: a - torch.arange(1.0, a.numel() + 1).view(a.shape) / a.numel() for k, a in SENT.items()}
    assert 4 in {int(n) for n in detect(name, updates, SENT, examples=[1] * CLIENTS, format=PLAIN).flagged.nonzero()}


@pytest.mark.parametrize("name", BY_CHANGE + BY_THRESHOLD)
@pytest.mark.parametrize("kind", ["equal", "unchanged", "one huge", "all huge", "opposite", "tiny", "two", "one"])
def test_hostile_values_give_finite_scores(name: str, kind: str) -> None:
    updates = round_of()
    huge = {key: torch.full_like(array, 1e12) for key, array in updates[0].items()}
    tiny = {key: torch.full_like(array, 1e-40) for key, array in updates[0].items()}
    updates = {
        "equal": [updates[0]] * CLIENTS,
        "unchanged": [fold(GRAPH, SENT) | {k: a for k, a in updates[0].items() if "threshold" in k}] * CLIENTS,
        "one huge": [huge, *updates[1:]],
        "all huge": [huge] * CLIENTS,
        "opposite": [huge, {k: a if "threshold" in k else -a for k, a in huge.items()}, *updates[2:]],
        "tiny": [tiny, *updates[1:]],
        "two": updates[:2],
        "one": updates[:1],
    }[kind]
    verdict = detect(name, updates, SENT, examples=[1] * len(updates), format=FORMAT)
    json.dumps(verdict.scores.tolist(), allow_nan=False)
    if kind in ("equal", "unchanged", "all huge", "two", "one"):
        assert not verdict.flagged.any()
    if kind == "one huge" and name != "cosine":
        assert bool(verdict.flagged[0])


def test_outliers_are_those_of_the_modified_z_score() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 3 + 3.5 * 1.4826 * 1.5 + 1, -90.0], dtype=torch.float64)
    median = 3.0
    mad = float((scores - median).abs().sort().values[3])
    literal = [(s - median) / (1.4826 * mad) > 3.5 for s in scores.tolist()]
    assert outliers(scores).tolist() == literal == [False] * 5 + [False, False]
    assert outliers(torch.cat([scores, torch.full((1,), 100.0)])).tolist()[-1]
    # More than half are equal: the mean deviation decides.
    half = torch.tensor([0.0] * 9 + [1.0], dtype=torch.float64)
    assert outliers(half).tolist() == [False] * 9 + [True]
    assert not outliers(torch.full((5,), 2.0, dtype=torch.float64)).any()


def test_of_equally_large_clusters_the_first_clients_counts() -> None:
    from snnfl.detection.thresholds import larger_cluster_centre

    values = torch.tensor([[0.0], [0.0], [9.0], [9.0]], dtype=torch.float64)
    assert larger_cluster_centre(values).item() == 0
    assert larger_cluster_centre(values.flip(0)).item() == 9
    for few in combinations(range(5), 2):
        mixed = torch.zeros(5, 1, dtype=torch.float64)
        mixed[list(few)] = 9
        assert larger_cluster_centre(mixed).item() == 0


FLAGS, SCORES = torch.zeros(CLIENTS, dtype=torch.bool), torch.zeros(CLIENTS)


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "expected Findings, found NoneType"),
        ([], "expected Findings, found list"),
        (Findings(scores=SCORES[:3], flagged=FLAGS), "scores: expected a tensor of shape [10], found [3]"),
        (Findings(scores=SCORES.tolist(), flagged=FLAGS), "scores: expected a tensor of shape [10], found list"),
        (Findings(scores=SCORES / 0, flagged=FLAGS), "scores: expected finite floating-point numbers"),
        (Findings(scores=SCORES.int(), flagged=FLAGS), "scores: expected finite floating-point numbers"),
        (Findings(scores=SCORES, flagged=FLAGS[:3]), "flagged: expected a tensor of shape [10], found [3]"),
        (Findings(scores=SCORES, flagged=SCORES), "flagged: expected booleans, found torch.float32"),
        (Findings(scores=SCORES, flagged=FLAGS, points=SCORES), "points: expected a tensor of shape [10, 2]"),
        (Findings(scores=SCORES, flagged=FLAGS, points=torch.full((10, 2), torch.inf)), "points: expected finite"),
    ],
)
def test_what_is_no_verdict_is_refused_by_the_detectors_name(answer, reason):
    register("odd", source="this test")(lambda view: answer)
    with pytest.raises(DetectorError, match=r"^odd: ") as error:
        detect("odd", round_of(), SENT, examples=[10] * CLIENTS, format=FORMAT)
    assert reason in str(error.value)
