"""Names that client and server agree on, and nothing else: what a message's records and metrics are called."""

from __future__ import annotations

from snnfl.config import Config, client_side, converts, keeps_biases, spikes_natively, update_kind

ARRAYS = "arrays"
METRICS = "metrics"
CONFIG = "config"
"""Records of a message."""

CONTROL = "control"
"""A further one in SCAFFOLD: the server's control variate in a train message, how the client's changed in the reply."""

REFERENCE = "reference"
"""A further one of a train message where clients add noise: what is known of the spiking network's own arrays."""

NOISED = "noised"
"""The array of a reply that holds whole numbers with noise, for the masks."""

CLIPPING_NORM = "clipping_norm"
NOISE_MULTIPLIER = "noise-multiplier"
"""In the config record: the bound of the norm of all that a client sends (Flower's name), and what noise it adds, in
units of it; of a sample's gradient where that is what is protected."""

SECURE = "secure"
"""Another one in secure aggregation (:mod:`snnfl.masking.wire`): of each of its four questions and their answers, and
of a train message, whose reply has the array :data:`MASKED` in the place of an update."""

MASKED = "masked"
SECURE_KEYS, SECURE_SHARES, SECURE_CONFIRM, SECURE_UNMASK = (
    "secure_keys",
    "secure_shares",
    "secure_confirm",
    "secure_unmask",
)
"""Names of the questions: they are messages of the type ``query.NAME``."""

IDENTITY_KEY = "identity-key"
"""In a node's configuration: the file of its own private key (ECDSA P-384), with which it signs what it advertises."""

IDENTITIES = "identities"
"""There: the folder of all nodes' public keys, from their operators; keys that none of them has signed are refused."""

SERVER_ROUND = "server-round"
"""What Flower's strategies put into the config record: the round, counted from 1."""

OBJECTIVE = "objective"
"""There: the name of the objective that clients are to minimise, of :data:`~snnfl.training.objectives.OBJECTIVES`."""

PROXIMAL_MU = "proximal-mu"
CONTRASTIVE_MU = "contrastive-mu"
TEMPERATURE = "temperature"
LOGIT_CALIBRATION = "logit-calibration"
SPREAD_WEIGHT = "spread-weight"
DISTILLATION_WEIGHT = "distillation-weight"
"""What the server puts there to say which objective is to be minimised: FedProx (Flower's name), MOON or FedLEC."""

RUN_TOKEN = "run-token"
"""In the config record: a random name of the run, 32 hexadecimal digits, which a resumed run keeps."""

OLDEST_ROUND = "oldest-round"
"""There: the oldest round that the server could be resumed after. What a client would need for an older one may go."""

STATE_DIRECTORY = "state-directory"
"""In a node's configuration: the folder in which its client keeps its private state."""

DATA_ROOT = "data-root"
"""There: the folder of its data sets, in the place of the run's ``data.root``."""

DATA_PATH = "data-path"
"""There: the folder or file of the node's own data, for runs in which each has its own (``data.source=own``)."""

SIMULATED = "simulated"
"""In the configuration of a simulation's node: ``true``, for its own data lie below the run's ``data.root``."""

REQUIRE_SPIKING = "require-spiking"
"""There: ``true`` if its client uploads nothing but calibrated spiking networks, whatever the run asks."""

REQUIRE_SECURE = "require-secure-aggregation"
"""There: ``true`` if its client takes part in no run that would have its update without masks."""

REFUSE_CRAFTED = "refuse-crafted"
"""There: ``true`` if its client trains no weights that look made to be told by its update."""

TRUTH_DIRECTORY = "truth-directory"
"""In the configuration of a simulation's node: where a client that consents tells what attacks are scored against."""

EXAMPLES = "num-examples"
LOSS = "loss"
RECEIVED_LOSS = "received-loss"
LOCAL_STEPS = "local-steps"
ACCURACY = "accuracy"
SNN_ACCURACY = "snn-accuracy"
SECONDS_TRAIN = "seconds-train"
SECONDS_EVALUATE = "seconds-evaluate"
SECONDS_CONVERT = "seconds-convert"
STATE_ROUND = "state-round"
"""Metrics of a reply. Accuracies are those of the client's own model on test images, in [0, 1]: of an
ordinary network, and of a spiking one, be it trained as one or converted. The received loss is
that of the received model on the client's training images. Local steps are those of its optimiser, for FedNova. The
state's round is the one after which the private state was written that the client has trained from, 0 for none: by it
the server, which knows who has trained when, notices that a client has lost its state."""

FAILED = "the run has failed"
NOT_AS_CONFIGURED = "finished, but not as configured"
REFUSED = "the run is refused"
"""How lines of a ServerApp's log begin, by which whoever follows it from another machine learns how a run ended."""

PARTITION = "partition-id"
TEST_EXAMPLES = "test-examples"
"""The client's answer to a query; where each node has data of its own, the number of its training examples
(:data:`EXAMPLES`) and of those that it tests on go with it."""

EVALUATE_METRICS = frozenset({EXAMPLES, ACCURACY, LOSS})
"""What a client answers to an evaluate message."""


def keeps_state(config: Config) -> bool:
    """Tell whether clients keep something private from round to round."""
    side = client_side(config)
    kept = keeps_biases(config) or bool(config.quantization.uploads) or adds_noise(config)
    return kept or side.own_model or side.own_normalisation or side.control_variates


def adds_noise(config: Config) -> bool:
    """Tell whether clients add noise of their own, whose key they keep."""
    return config.privacy.mechanism in ("distributed", "example", "local")


def own_accuracy(config: Config) -> str:
    """Name the metric that tells the accuracy of the network that a client trains."""
    return SNN_ACCURACY if spikes_natively(config) else ACCURACY


def train_metrics(config: Config) -> frozenset[str]:
    """Return the metrics that a train reply carries: no more and no fewer are accepted."""
    names = {EXAMPLES, LOSS, SECONDS_TRAIN}
    if config.evaluation.clients:
        names |= {own_accuracy(config), SECONDS_EVALUATE}
    if converts(config):
        names |= {SECONDS_CONVERT}
    if keeps_state(config):
        names |= {STATE_ROUND}
    if client_side(config).received_loss:
        names |= {RECEIVED_LOSS}
    if client_side(config).local_steps:
        names |= {LOCAL_STEPS}
    if update_kind(config) == "none" and converts(config) and config.evaluation.clients:
        names |= {SNN_ACCURACY}
    return frozenset(names)


def summed_metrics(config: Config) -> frozenset[str]:
    """Return which of them secure aggregation sums: all that depend on a client's data."""
    return train_metrics(config) - {EXAMPLES, STATE_ROUND}
