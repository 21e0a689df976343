"""One frozen dataclass per concept, each option with its documentation and its range."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from snnfl.config.auditing import AuditConfig
from snnfl.config.conversion import ConversionConfig
from snnfl.config.declaration import answers_nearest, option
from snnfl.config.modelling import ModelConfig, TrainingConfig
from snnfl.config.poisoning import DetectionConfig, PoisoningConfig
from snnfl.config.privacy import PrivacyConfig
from snnfl.config.quantization import QuantizationConfig


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run itself."""

    name: str = option("run", doc="results are written to DIRECTORY/NAME")
    directory: str = option("runs", doc="folder that holds the runs")
    overwrite: bool = option(False, doc="replace the results of an earlier run of the same name")
    resume: bool = option(False, doc="continue the run that lies there after its last complete round")
    keep_checkpoints: int = option(
        2,
        low=0,
        doc="complete rounds that a run can be resumed after: the last ones, and one that no power cut takes; 0: none",
    )
    seed: int = option(0, low=0, high=2**32 - 1, doc="decides partitions, initial weights, batches and selection")
    rounds: int = option(10, low=1, doc="global communication rounds")
    threads: int = option(1, low=1, high=1024, doc="torch threads per process; only equal numbers give equal bits")
    device: str = option("cpu", doc="torch device of every client and the server: cpu, cuda, cuda:0, ...")
    tracking: str | None = option(None, doc="who else is told each round's metrics: tensorboard; null: nobody")


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set and how it is divided among the clients."""

    source: str = option(
        "digits",
        doc="digits, mnist, fashion_mnist, cifar10, cifar100, tiny_imagenet, iris or breast_cancer; events, sound and "
        "series: see docs/sequences.md; own: what each node holds (docs/deployment.md)",
    )
    root: str | None = option(None, doc="folder of downloaded data sets; null: SNNFL_DATA, else ~/.cache/snnfl")
    training_images: int = option(0, low=0, doc="use so many training samples, the same for every seed; 0: all")
    test_images: int = option(0, low=0, doc="use so many test samples, the same for every seed; 0: all")
    clients: int = option(10, low=1, doc="number of clients, each with one partition")
    partition: Literal["iid", "dirichlet", "dirichlet_balanced", "quantity", "pathological", "natural"] = option(
        "iid",
        doc="iid; dirichlet over labels, or the balanced one of NIID-Bench and MOON; dirichlet over quantities (SNFL "
        "5.2); classes per client; natural: whole users of the data set",
    )
    beta: float = option(0.5, above=0.0, doc="concentration of either Dirichlet; smaller is more unbalanced")
    classes_per_client: int = option(2, low=1, doc="of the pathological partition")
    minimum_samples: int = option(10, low=1, doc="a client with fewer training samples is an error")
    augment: bool = option(False, doc="random crop (padding 4, digits 1) and, of photographs, horizontal flip")
    folder: str | None = option(
        None, doc="audio_folder, series: your own folder, or .npz of series, below that of `root`"
    )
    time_bins: int | None = option(
        None,
        low=1,
        doc="of sequences: time steps of events and sound, length of a window of series; null: see docs/sequences.md",
    )
    binning: Literal["time", "count"] = option(
        "time", doc="of events: time steps of equal duration, or of equally many events"
    )
    resolution: int | None = option(
        None,
        low=1,
        doc="of events: pixels of a side, whose blocks are summed, null: the sensor's; of sound: bands, null: 40",
    )
    filters: Literal["mel", "cochlear"] = option(
        "mel", doc="of sound: bands are triangles on the mel scale, or gammatone filters as of a cochlea"
    )
    classes: tuple[str, ...] = option((), doc="own: names of the classes, in the order of their labels")
    shape: tuple[int, ...] = option(
        (), doc="own: shape of a sample: [C,H,W] of pictures, [F] of rows, [T,F] of series, [T,C,H,W] of events"
    )
    features: tuple[str, ...] = option((), doc="own: names of a table's columns, in the place of `shape`")
    mean: tuple[float, ...] = option(
        (), doc="own: what is subtracted, a number or one per channel or feature; []: 0.5 of pictures, else 0"
    )
    std: tuple[float, ...] = option((), doc="own: what divides, likewise; []: 0.5 of pictures, else 1")
    test_share: float = option(
        0.2,
        above=0.0,
        high=0.9,
        doc="own: part of its samples, of each class, that a node tests on and never trains on",
    )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample of nodes' own data, as the run states it."""
        return self.shape or (len(self.features),)


OWN = "own"
"""The source of data that each node has for itself."""

READING = (
    "folder", "time_bins", "binning", "resolution", "filters", "classes", "shape", "features", "mean", "std",
    "test_share",
)  # fmt: skip
"""Options of the data that decide how some sources read it: each source declares which it uses."""


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """The federated algorithm.

    A parameter that only some algorithms have is null by default, which is the algorithm's own default. Setting it for
    an algorithm that doesn't use it is an error, so that no option is silently without effect.
    """

    name: str = option(
        "fedavg",
        doc="fedavg, fedprox, moon, fedlec, fedbn, solo, fedavgm, fedadam, fedyogi, fedadagrad, qfedavg, scaffold, "
        "fednova, fedmedian, fedtrimmedavg, krum, multikrum or bulyan (docs/strategies.md)",
    )
    spiking: bool = option(True, doc="the S-variant: updates are converted, the server holds a spiking network")
    bias_back: bool = option(False, doc="whether the server returns biases (SNFL, Table 3); the paper: no")
    fraction_train: float = option(
        1.0, above=0.0, high=1.0, doc="part of the clients selected per round, rounded down, but at least one"
    )
    fraction_evaluate: float = option(
        0.0,
        low=0.0,
        high=1.0,
        doc="part of the clients that test the received model with their own biases; above 0 at least one",
    )
    weighting: Literal["examples", "uniform"] = option(
        "examples",
        doc="what an update counts in an average: its client's training examples (FedAvg), or all alike (SNFL, eq. 2)",
    )
    timeout: float = option(3600.0, above=0.0, doc="seconds that each client has for its reply")
    minimum_replies: int = option(1, low=1, doc="with fewer valid replies a round keeps the old weights")
    participation: float = option(
        1.0, above=0.0, high=1.0, doc="probability that a selected client takes part in a round (SNFL, appendix A.2)"
    )
    update_bound: float | None = option(
        100.0,
        low=1.0,
        doc="how many times the median of its round, or the scale of the start, an update or aggregate may change an "
        "array (docs/backdoor.md); null: any change to values below 1e12",
    )
    secure_aggregation: bool = option(
        False, doc="clients mask their updates, the server learns the sum alone (docs/provable-privacy.md)"
    )
    secure_range: float | None = option(
        None, above=0.0, doc="secure aggregation: to which changes and values of an update are clipped; null: 64"
    )
    secure_rounding: Literal["nearest", "stochastic"] = option(
        "nearest", doc="secure aggregation: how values become whole numbers; stochastic errors are zero on average"
    )
    secure_tolerance: float | None = option(
        None,
        low=0.0,
        high=0.3,
        doc="secure aggregation: part of a round's clients that may drop out once they have advertised their keys, and "
        "part that may collude with the server; null: 0.1",
    )
    proximal_mu: float | None = option(None, low=0.0, doc="fedprox: weight of |w - w_t|^2 / 2; null: 0.01")
    contrastive_mu: float | None = option(None, low=0.0, doc="moon: weight of the contrastive loss; null: 1")
    temperature: float | None = option(None, above=0.0, doc="moon: temperature of the similarities; null: 0.5")
    logit_calibration: float | None = option(
        None,
        low=0.0,
        doc="fedlec: weight of the logarithm of a label's local share in its logit; 0: as the authors since April 2025;"
        " null: 1",
    )
    spread_weight: float | None = option(
        None, low=0.0, doc="fedlec: weight of the penalty of logits of labels that a sample doesn't have; null: 0.005"
    )
    distillation_weight: float | None = option(
        None, low=0.0, doc="fedlec: weight of the distillation of locally missing labels; null: 0.1"
    )
    server_learning_rate: float | None = option(
        None, above=0.0, doc="fedavgm, fedadam, fedyogi, fedadagrad, scaffold; null: 1, 0.1, 0.01, 0.1, 1"
    )
    server_momentum: float | None = option(None, low=0.0, high=1.0, doc="fedavgm; null: 0.9")
    beta_1: float | None = option(None, low=0.0, high=0.999999, doc="fedadam, fedyogi: of the first moment; null: 0.9")
    beta_2: float | None = option(None, low=0.0, high=0.999999, doc="fedadam, fedyogi: of the second one; null: 0.99")
    tau: float | None = option(None, above=0.0, doc="fedadam, fedyogi, fedadagrad: adaptivity; null: 0.001")
    q: float | None = option(None, low=0.0, high=100.0, doc="qfedavg: 0 is a plain mean, larger is fairer; null: 0.1")
    trimmed_fraction: float | None = option(
        None, above=0.0, high=0.499999, doc="fedtrimmedavg: part cut off at either end; null: 0.2"
    )
    malicious_clients: int | None = option(None, low=0, doc="krum, multikrum, bulyan: how many to withstand; null: 1")
    selected_clients: int | None = option(
        None, low=1, doc="multikrum: how many updates are averaged; null: selected - malicious_clients - 2"
    )


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured after a round, on the test set."""

    images: int = option(
        0, low=0, doc="test images per evaluation before the last round; 0: all. The last round uses all"
    )
    clients: bool = option(True, doc="evaluate each client's own ANN after its local training")
    batch_size: int = option(256, low=1, doc="images per forward pass")
    curve: tuple[int, ...] = option((), doc="other lengths T at which the server's spiking network is measured, too")


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where the run takes place. What the named engine doesn't use must stay at its default."""

    name: Literal["in_process", "ray", "deployment"] = option(
        "in_process", doc="one client after another in this process; several in Ray workers; a Flower SuperLink"
    )
    cpus_per_client: float = option(
        1.0, above=0.0, doc="ray: CPUs that a client occupies; on four, 1 runs four clients"
    )
    gpus_per_client: float = option(0.0, low=0.0, doc="ray: GPUs that a client occupies; 0.25 lets four share one")
    address: str | None = option(
        None, doc="ray: address of a running cluster, HOST:PORT, or auto for one here; null: start Ray here"
    )
    connection: str | None = option(
        None, doc="deployment: connection of Flower's config.toml, as in flwr run . CONNECTION; null: its default"
    )


@answers_nearest
@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    conversion: ConversionConfig = field(default_factory=ConversionConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    poisoning: PoisoningConfig = field(default_factory=PoisoningConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)


@cache
def options(kind: type = Config, prefix: str = "") -> tuple[tuple[str, dataclasses.Field[Any], Any], ...]:
    """Return ``(key, field, type)`` for every option, keys dotted, in order of declaration."""
    hints, found = typing.get_type_hints(kind), list[tuple[str, dataclasses.Field[Any], Any]]()
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            found += options(typing.cast(type, hints[item.name]), f"{prefix}{item.name}.")
        else:
            found.append((f"{prefix}{item.name}", item, hints[item.name]))
    return tuple(found)


def value_of(config: Config, key: str) -> Any:
    """Return an option's value by its dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
