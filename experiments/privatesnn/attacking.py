"""Attack what a study publishes, beside the plain network and one that nobody trained; each attack's result is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.privatesnn.checking import spare_data
from experiments.privatesnn.network import Network
from experiments.privatesnn.setting import Setting
from experiments.privatesnn.stages import on_device, read_converted, synthetic_images
from snnfl import rng
from snnfl.auditing.judge import Judge, train_judge
from snnfl.auditing.published import Haul, Owner, classified, score
from snnfl.auditing.synthetic import nearness
from snnfl.checksummed import write_checksummed
from snnfl.config import ConfigError
from snnfl.data import Dataset
from snnfl.files import write_bytes
from snnfl.model_attacks import MODEL_ATTACKS, ModelAttack, ModelAttackError, ModelBudget, get_model_attack
from snnfl.private_snn import PublishedNetwork, affine_parameters
from snnfl.private_snn import load as load_published
from snnfl.threat import ModelKnowledge, ModelView, PublicImages, ThreatModelError
from snnfl.threat.model import parts_of

JUDGE_SEED = 1_000_003
"""Of every judge: no study's seed."""

Result = dict[str, Any]
"""What an attack got out of a network, as it is written to a file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What every attack on a data set's networks is tried with; no image of it is the owner's.

    Attributes:
        dataset: The owner's.
        judge: Of class images.
        public: Images that the attacker has.
        held_out: Images of nobody: the judge's.
        real: Test images, normalised.
        labels: Theirs.
        mean: Of the normalisation of pixels in [0, 1], whatever range the data set stores, one value per channel.
        std: Likewise.
    """

    dataset: Dataset
    judge: Judge
    public: PublicImages
    held_out: Tensor
    real: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor


def bench_of(setting: Setting, network: Network) -> Bench:
    """Take training images that the owner left, and train the judge on some of them.

    Args:
        setting: Its ``data.training_images`` are the owner's; those behind them are the judge's and the attacker's.
        network: Of the setting.

    Raises:
        ConfigError: If too few images are left.
    """
    attack, dataset, more = setting.attack, network.work.dataset, spare_data(setting)
    own = len(dataset.train_labels)
    real, labels = dataset.normalise(dataset.test_images), dataset.test_labels
    judged = torch.arange(own, own + attack.judge_images)
    judge = train_judge(more, judged, (real, labels), seed=JUDGE_SEED, model=attack.judge, epochs=attack.judge_epochs)
    public = more.normalise(more.train_images[own + attack.judge_images :])
    low, high = (each[0].flatten(1)[:, 0].cpu() for each in network.bounds)  # alike over an image
    return Bench(
        mean=-low / (high - low),
        std=1 / (high - low),
        dataset=dataset,
        judge=judge,
        public=PublicImages(inputs=public, labels=None),
        held_out=more.normalise(more.train_images[judged]),
        real=real,
        labels=labels,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A network that is attacked.

    Attributes:
        name: ``ann``, ``converted``, ``encrypted``, ``random``, or the name of a lock.
        network: A published one; of ``ann`` that with the same weights.
        fires: Whether it has neurons that fire.
    """

    name: str
    network: PublishedNetwork
    fires: bool = True

    def ask(self, seed: int) -> Callable[[Tensor], Tensor]:
        """Return what answers for it with logits; its coding draws anew at each question."""
        if not self.fires:
            return torch.no_grad()(self.network.analog)
        draws = torch.Generator().manual_seed(rng.derive_seed(seed, "questions"))
        return lambda images: self.network(images, draws)


def targets_of(setting: Setting, network: Network) -> Iterator[Target]:
    """Yield the networks of a setting that are to be attacked.

    Args:
        setting: Which.
        network: The ANN.

    Raises:
        ConfigError: If one isn't there yet.
    """
    device = torch.device("cpu")
    converted, published = (on_device(each, device) for each in _networks(setting))
    plain = on_device(converted.holding({**converted.parameters, **network.parameters}), device)  # nothing calibrated
    made = {
        "ann": lambda: Target(name="ann", network=plain, fires=False),
        "converted": lambda: Target(name="converted", network=converted),
        "encrypted": lambda: Target(name="encrypted", network=published),
        "random": lambda: Target(name="random", network=shuffled(published, setting.config.run.seed)),
    }
    yield from (made[name]() for name in setting.attack.networks)
    for lock in setting.locks:
        yield Target(name=lock, network=_networks(setting.locked(lock))[1])


def _networks(setting: Setting) -> tuple[PublishedNetwork, PublishedNetwork]:
    if not setting.published.exists():
        raise ConfigError(f"{setting.published}: not there yet; run snnfl privatesnn encrypt first")
    return read_converted(setting), load_published(setting.published)


def shuffled(network: PublishedNetwork, seed: int) -> PublishedNetwork:
    """Return a network whose weights and biases are in random order: as large, and without what training made."""
    found = dict(network.parameters)
    for number, (name, array) in enumerate(affine_parameters(network.graph, network.parameters).items()):
        order = torch.randperm(array.numel(), generator=rng.generator(seed, "random network", number))
        found[name] = array.flatten()[order].view(array.shape)
    return network.holding(found)


def view_of(
    setting: Setting, target: Target, bench: Bench, statistics: Mapping[str, tuple[Tensor, Tensor]]
) -> ModelView:
    """Return what an attacker has of a network.

    Args:
        setting: Names what the attacker lacks.
        target: The network.
        bench: Public images.
        statistics: Of batch normalisation, which only the plain network has not folded.
    """
    parts = parts_of(target.network.graph, target.network.parameters)
    ask = target.ask(setting.config.run.seed)
    return ModelView(
        input_shape=target.network.input_shape,
        classes=len(bench.dataset.class_names),
        mean=bench.mean,
        std=bench.std,
        knowledge=ModelKnowledge().without(setting.attack.deny),
        network=target.network if target.fires else None,
        statistics={} if target.fires else statistics,
        logits=ask,
        labels=lambda images: ask(images).argmax(1),
        public=bench.public,
        synthetic=synthetic_images(setting)[0],
        **{**parts, "thresholds": parts["thresholds"] if target.fires else {}},
    )


def attacks_of(setting: Setting) -> list[ModelAttack]:
    """Return the attacks that a study names, or all."""
    return [get_model_attack(name) for name in setting.attack.attacks or MODEL_ATTACKS.items]


def attack_target(
    setting: Setting, target: Target, bench: Bench, network: Network, report: Callable[[], None]
) -> list[Result]:
    """Try every attack on a network, and return what each got; what is written already isn't tried again.

    Args:
        setting: Which.
        target: One of its networks.
        bench: Judge and images.
        network: The ANN, whose statistics it is.
        report: Called after each attack.
    """
    known = {layer: (mean.cpu(), variance.cpu()) for layer, (mean, variance) in network.statistics.items()}
    view = view_of(setting, target, bench, known)
    answers = classified(target.ask(setting.config.run.seed + 1), bench.real)
    owner = Owner(answers=answers, real=bench.real, labels=bench.labels)
    results = []
    for attack in attacks_of(setting):
        results.append(_tried(setting, target, bench, view, owner, attack))
        report()
    return results


def _tried(
    setting: Setting, target: Target, bench: Bench, view: ModelView, owner: Owner, attack: ModelAttack
) -> Result:
    file, place = setting.stolen(target.name, attack.name), {"labels": dict(setting.labels), "target": target.name}
    if (kept := file.with_suffix(".json")).exists():
        read: Result = json.loads(kept.read_text())
        return {**read, **place}  # another setting of the same options may have other labels
    file.parent.mkdir(exist_ok=True)
    options, seed = setting.attack, setting.config.run.seed
    budget = ModelBudget(
        starts=options.starts, iterations=options.iterations, epochs=options.epochs, images=options.images
    )
    found: Result = {**place, "attack": attack.name}
    found |= {"owner": owner.accuracy, "judge": bench.judge.name, "judge_accuracy": bench.judge.accuracy}
    begun = time.process_time()
    try:
        theft = attack.run(view, budget=budget, generator=rng.generator(seed, f"attack {attack.name}"))
    except (ThreatModelError, ModelAttackError) as error:
        found["refused"] = str(error)
    else:
        pixels = view.pixels(theft.images)
        found |= asdict(score(theft, view.inputs(pixels), bench.judge, owner))
        write_checksummed(file.with_suffix(".safetensors"), {"pixels": pixels.contiguous().numpy()}, {})
    found["processor_seconds"] = time.process_time() - begun
    write_bytes(kept, json.dumps(found, indent=1).encode())
    return found


def haul_of(result: Result) -> Haul | None:
    """Return the score of a result, or ``None`` if the attack didn't run."""
    if "refused" in result:
        return None
    names = ("recognised", "starts", "frechet", "kernel", "accuracy", "agreement")
    return Haul(**{name: result[name] for name in names})


def data_free(setting: Setting, bench: Bench, count: int = 1000) -> list[Result]:
    """Measure whether synthetic images are nearer to training images than to others, over pixels and features."""
    images, dataset = synthetic_images(setting)[0], bench.dataset
    number = min(count, len(bench.held_out), len(dataset.train_labels))
    members, others = dataset.normalise(dataset.train_images[:number]), bench.held_out[:number]
    found = []
    for space, features in (("pixels", None), ("judge's features", bench.judge.extractor)):
        near = nearness(images, members, others, features)
        found.append({"labels": dict(setting.labels), "space": space, **asdict(near)})
    return found


def picture_rows(
    setting: Setting, bench: Bench, shown: Sequence[tuple[str, str]], results: Sequence[Result]
) -> list[tuple[str, Tensor]]:
    """Return rows of pictures, one a class: real ones, then the first of each attack that ran.

    Args:
        setting: Whose results they are.
        bench: Real images.
        shown: Target and attack of each row.
        results: Of the setting.
    """
    from snnfl.checksummed import read_checksummed

    classes = range(len(bench.dataset.class_names))
    first = torch.stack([bench.real[bench.labels == number][0] for number in classes])
    pixels = first * bench.std.view(-1, 1, 1) + bench.mean.view(-1, 1, 1)
    rows = [("real", pixels.clamp(0, 1))]
    ran = {(result["target"], result["attack"]) for result in results if "refused" not in result}
    for target, attack in shown:
        if (target, attack) in ran:
            file = setting.stolen(target, attack).with_suffix(".safetensors")
            rows.append((f"{attack}, {target}", torch.from_numpy(read_checksummed(file)[0]["pixels"])[:, 0]))
    return rows
