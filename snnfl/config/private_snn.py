"""PrivateSNN: how images are made without data, how the network is converted on them, and how it is encrypted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from snnfl.config.declaration import ConfigError, answers_nearest, check_options, option

REACH = 2.5
"""How far Adam can move a pixel: the authors' 2,500 iterations at a rate of 0.001."""


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How images are made of a trained network alone (Kim et al. 2022, "Data-Free Conversion", and their code).

    Raises:
        ConfigError: If an option is none of its choices or out of its range.
    """

    images: int = option(
        5000, low=1, doc="as many for each class, up to one; the paper: 5,000 of CIFAR-10, else 10,000"
    )
    iterations: int = option(2500, low=1, doc="steps of Adam per image (their code: 2,500, of MNIST 1,500)")
    learning_rate: float | None = option(
        None, above=0.0, doc="of Adam; null: 2.5 / iterations, which is their 0.001 for 2,500"
    )
    temperature: float = option(20.0, above=0.0, doc="what divides logits in the cross-entropy (their code)")
    similarity: Literal["minmax", "printed"] = option(
        "minmax",
        doc="of classes: cosines of the last layer's rows, each row brought to 0..1 (their code), or eq. 2 as printed",
    )
    floor: float = option(0.01, above=0.0, doc="smallest concentration of the Dirichlet, whose others are similarities")
    statistics: float = option(
        0.0, low=0.0, doc="weight of the distance from batch normalisation's running statistics (DeepInversion)"
    )
    blur: int = option(0, low=0, doc="blur images each time after so many iterations; 0: never (their code)")
    batch: int = option(100, low=1, doc="images that are made at once; what is complete outlives an interrupt")

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return REACH / self.iterations if self.learning_rate is None else self.learning_rate


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class PublishingConfig:
    """How a network is converted to the one that is encrypted and published.

    Raises:
        ConfigError: If an option is none of its choices or out of its range.
    """

    steps: int = option(150, low=1, doc="T (the paper: 150 of CIFAR-10, else 200)")
    thresholds: Literal["maximum", "mmse"] = option(
        "maximum",
        doc="largest current of each layer over images and steps (the paper), or a search of the MMSE of activations "
        "and calibrated biases, as clients convert (docs/concepts.md)",
    )
    leak: float = option(1.0, low=0.0, high=1.0, doc="part of a potential that is left after a step (their code: 1)")
    encoding: Literal["poisson", "direct"] = option(
        "poisson", doc="signed Poisson spikes of the pixels (the paper), or the pixels at each step"
    )
    images: int = option(128, low=1, doc="synthetic images, or training images as control, that decide thresholds")

    def __post_init__(self) -> None:
        check_options(self)


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class EncryptionConfig:
    """How the converted network is trained with spikes (Kim et al. 2022, Algorithm 2, step 2).

    Raises:
        ConfigError: If an option is none of its choices or out of its range.
    """

    images: int = option(5000, low=1, doc="synthetic images to train on, from the first")
    epochs: int = option(20, low=1, doc="passes over them")
    batch_size: int = option(64, low=1, doc="images per step")
    learning_rate: float = option(1e-4, above=0.0, doc="of Adam, before the schedule")
    milestones: tuple[float, ...] = option((0.5, 0.7), doc="parts of the epochs after which the rate falls")
    decay: float = option(0.1, above=0.0, high=1.0, doc="factor at each milestone")
    distillation: float = option(0.7, low=0.0, high=1.0, doc="m of eq. 3: weight of the distillation; 0: none")
    temperature: float = option(20.0, above=0.0, doc="tau of the distillation")
    surrogate: str = option("triangular_damped", doc="surrogate gradient, by the potential in units of the threshold")
    chunk: int | None = option(
        None, low=1, doc="time steps whose values are kept at once, the others being computed again; null: sqrt(T)"
    )

    relu_penalty: float = option(
        0.0, low=0.0, doc="a lock: weight of a penalty for what a ReLU network with these weights gets right"
    )
    threshold_spread: float = option(
        0.0, low=0.0, doc="a lock: thresholds per channel, up to 2 to this power above and below the layer's"
    )
    lowest_leak: float | None = option(
        None, low=0.0, high=1.0, doc="a lock: leaks per channel, from this to 1 times the network's; null: its own"
    )
    bits: int | None = option(None, low=2, high=8, doc="a lock: of weights, which take so few levels; null: float32")

    def __post_init__(self) -> None:
        check_options(self)
        if any(not 0 < part < 1 for part in self.milestones):
            raise ConfigError(f"milestones={[*self.milestones]}: expected parts of the epochs, between 0 and 1")

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0.

        >>> [round(EncryptionConfig().rate(epoch), 8) for epoch in (0, 9, 10, 14)]
        [0.0001, 0.0001, 1e-05, 1e-06]
        """
        passed = sum(epoch >= round(part * self.epochs) for part in self.milestones)
        return self.learning_rate * self.decay**passed


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class PrivateSNNConfig:
    """All three of them."""

    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    publishing: PublishingConfig = field(default_factory=PublishingConfig)
    encryption: EncryptionConfig = field(default_factory=EncryptionConfig)


NETWORKS = ("ann", "converted", "encrypted", "random")
"""What is attacked: the plain network, the spiking one before and after encryption, and one that nobody trained."""


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class ModelAttackConfig:
    """How published networks are attacked, and by whom what attacks get is judged.

    Raises:
        ConfigError: If an option is none of its choices or out of its range.
    """

    attacks: tuple[str, ...] = option((), doc="names of attacks (snnfl privatesnn attack --list); empty: all")
    deny: tuple[str, ...] = option((), doc="facts that the attacker lacks, such as public_images")
    networks: tuple[str, ...] = option(NETWORKS, doc=f"what is attacked: {', '.join(NETWORKS)}")
    starts: int = option(4, low=1, doc="class images of each class")
    iterations: int = option(200, low=1, doc="steps of gradient ascent for each of them")
    epochs: int = option(50, low=1, doc="of training a copy on what the network answers")
    images: int = option(2000, low=1, doc="public images that the attacker has, and most that it asks about")
    judge: str = option("cnn", doc="structure of the network that judges class images")
    judge_images: int = option(6000, low=10, doc="training images that it learns from, and the owner doesn't have")
    judge_epochs: int = option(3, low=1, doc="passes over them")

    def __post_init__(self) -> None:
        check_options(self)
        for name in self.networks:
            if name not in NETWORKS:
                raise ConfigError(f"networks={name}: expected {', '.join(NETWORKS)}")
