"""The Flower ServerApp: one run, from its configuration to its folder."""

from __future__ import annotations

import gc
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from logging import ERROR, INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from snnfl.batching import batch_count
from snnfl.compatibility import IncompatibleLibraryError
from snnfl.config import OWN, Config, ConfigError, client_side, counted, secure_tolerance, spikes_natively, unflatten
from snnfl.conversion import ConversionError, exposed_biases
from snnfl.models import deployed, mute_potentials
from snnfl.poisoning import check_poisoning
from snnfl.protocol import FAILED, NOT_AS_CONFIGURED, OLDEST_ROUND, REFUSED, RUN_TOKEN, train_metrics
from snnfl.spiking import save
from snnfl.spiking.storage import NATIVE_KIND, write_arrays
from snnfl.updates import Converted, control_specs, scale_of, summed
from snnfl.updates.noised import noisy_sum
from snnfl.workspace import Workspace, workspace
from strategies.attendance import nothing_valid, shortcomings
from strategies.audited import Audited, AuditedSums, LiveAudit
from strategies.bases import weighing
from strategies.checkpoint import Checkpoint, Checkpoints, check_state, discard_newer
from strategies.combinations import build_checked, minimum_replies, network_rule
from strategies.crafting import Crafting
from strategies.detecting import build_detecting
from strategies.figures import plot_accuracy
from strategies.guarded import Guarded
from strategies.lock import FolderInUseError
from strategies.population import Population, PopulationError
from strategies.protecting import protection_of
from strategies.recorder import Observer, Recorder, Row
from strategies.resume import RunBrokenOffError, find_checkpoint, require_run, told_if_broken_off
from strategies.run_directory import (
    ANN_FILE,
    AUDIT,
    CHECKPOINTS,
    FIGURE_FILES,
    METRICS_FILE,
    SNN_FILE,
    RunDirectory,
    RunFileError,
    held,
    read_metrics,
    refuse_earlier,
    run_path,
)
from strategies.secure import Secure
from strategies.simulation import end_in_good_order
from strategies.spiking import Spiking
from strategies.superlink_grid import shielded
from strategies.tracking import Tracker, find_tracker
from strategies.update import MAXIMUM_EXAMPLES, UpdateSpec

logger = logging.getLogger(__name__)

MISTAKES = (PopulationError, ConfigError, IncompatibleLibraryError, ConversionError, FolderInUseError, RunFileError)
"""What a run is refused for, before training."""


def server_app(observer: Observer = lambda row: None) -> ServerApp:
    """Make a ServerApp that tells each round's row to ``observer``."""
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        run(grid, unflatten(context.run_config), observer)

    return made


def run(grid: Grid, config: Config, observer: Observer = lambda row: None) -> None:
    """Run a federation and write its folder.

    Args:
        grid: Of the engine.
        config: Of the run.
        observer: Told the row of each round.

    Raises:
        ConfigError: For a configuration that cannot run, before anything is sent or written.
        PopulationError: If the nodes don't fit it.
        FolderInUseError: If another process runs it.
        RunFileError: If a file of the run is damaged, before anything is sent.
        RunBrokenOffError: If the system doesn't let a file of the run be written.
    """
    work = workspace(config)
    check_poisoning(config, work.dataset.input_shape, work.dataset.classes)
    work.check_batches()
    tracker = find_tracker(config)
    strategy, arrays = build_strategy(work)
    strategy.detecting = build_detecting(config, work.format)
    strategy.privacy = protection_of(work, arrays)
    if config.run.keep_checkpoints:
        check_state(strategy)
    if config.run.resume:
        require_run(config)
    with held(config), told_if_broken_off(config):
        if not config.run.resume:
            refuse_earlier(config)
        checkpoint = find_checkpoint(config) if config.run.resume else None
        if checkpoint is not None:
            checkpoint.restore(strategy)
            if checkpoint.server_round >= config.run.rounds:
                _leave(checkpoint, work, strategy)
                return
        population = Population(shielded(grid))
        population.assemble(
            config.data.clients,
            timeout=config.strategy.timeout,
            minimum_replies=config.strategy.minimum_replies,
            ask=config.run.resume,
            own_data=config.data.source == OWN,
        )
        if population.holdings:
            _expect(strategy, population)
        _play(work, strategy, arrays, population, checkpoint, tracker, observer)


def _expect(strategy: Guarded, population: Population) -> None:
    """Let no node claim more samples than any has said that it holds of its own."""
    examples = max(holding.examples for holding in population.holdings)
    test_examples = max(holding.test_examples for holding in population.holdings)
    strategy.spec = replace(strategy.spec, examples=examples, test_examples=test_examples)
    if isinstance(strategy, Secure):
        strategy.summed.expect(examples)


def _play(
    work: Workspace,
    strategy: Guarded,
    arrays: ArrayRecord,
    population: Population,
    checkpoint: Checkpoint | None,
    tracker: Tracker | None,
    observer: Observer,
) -> None:
    """Play the rounds that a run lacks, and write its results."""
    config = work.config
    if checkpoint is None:
        directory, token, completed = RunDirectory.create(config), secrets.token_hex(16), 0
    else:
        directory, token, completed = _take_up(checkpoint, config), checkpoint.token, checkpoint.server_round
        arrays = checkpoint.arrays
    track = None if tracker is None else tracker.open(config, directory.path, completed + 1)
    rows = read_metrics(directory.path, completed)
    recorder = Recorder(work, strategy, population, directory, [observer], rows, track)
    played: Strategy = strategy
    if config.audit.crafted != "none":
        played = Crafting(strategy, work, config.audit.rounds)
    live: LiveAudit | None = None
    if config.audit.record:
        folder = directory.path / AUDIT
        if isinstance(strategy, Secure):
            told = {each.partition: each.examples for each in population.holdings}
            images = told or dict(enumerate(map(len, work.partitions)))
            played = AuditedSums(played, folder, config.audit, strategy, images)
        else:
            played = Audited(played, folder, config.audit, strategy.spec)
        live = LiveAudit(work, directory.path / AUDIT) if config.audit.attacks else None
    strategy.summary()
    keep, rounds = config.run.keep_checkpoints, config.run.rounds
    checkpoints = Checkpoints(directory.path / CHECKPOINTS, directory.path / METRICS_FILE, keep=keep, rounds=rounds)
    with cheap_collection():
        for server_round in range(completed + 1, rounds + 1):
            if strategy.privacy is not None and (reason := strategy.privacy.exhausted(server_round)) is not None:
                logger.warning("%s; the run stops after round %d", reason, server_round - 1)
                break
            order = ConfigRecord({RUN_TOKEN: token, OLDEST_ROUND: checkpoints.oldest})
            arrays = play_round(played, population, server_round, arrays, order, timeout=config.strategy.timeout)
            recorder(server_round, arrays)
            if live is not None:
                live(server_round)
            if keep:
                checkpoints.write(strategy, server_round=server_round, token=token, arrays=arrays)
    _finish(directory, work, strategy, arrays)


@contextmanager
def cheap_collection() -> Iterator[None]:
    """Set everything that lives now aside from garbage collection for a while.

    In a process that holds torch a full collection takes 0.3 s, as long as a round of small models, and the messages of
    thousands of clients set one off; Flower's q-FedAvg and Bulyan ask for one per reply.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def play_round(
    strategy: Strategy,
    grid: Grid,
    server_round: int,
    arrays: ArrayRecord,
    order: ConfigRecord,
    *,
    timeout: float,
) -> ArrayRecord:
    """Play one round as Flower's ``Strategy.start`` does, which can only begin with the first.

    Args:
        strategy: Configures and aggregates.
        grid: Of the engine.
        server_round: Counted from 1.
        arrays: What the server sends.
        order: Sent along.
        timeout: Seconds to wait for the replies to train messages, and again for those to evaluate messages.

    Returns:
        What the server sends in the next round; with too few valid replies, the same as in this one.
    """
    log(INFO, "[ROUND %d]", server_round)
    messages = strategy.configure_train(server_round, arrays, ConfigRecord(dict(order)), grid)
    aggregated, _ = strategy.aggregate_train(server_round, grid.send_and_receive(messages, timeout=timeout))
    arrays = arrays if aggregated is None else aggregated
    messages = strategy.configure_evaluate(server_round, arrays, ConfigRecord(dict(order)), grid)
    strategy.aggregate_evaluate(server_round, grid.send_and_receive(messages, timeout=timeout))
    return arrays


def _take_up(checkpoint: Checkpoint, config: Config) -> RunDirectory:
    """Bring a run's folder back to where it was after a round."""
    directory = RunDirectory.reopen(config, checkpoint.server_round)
    discard_newer(directory.path / CHECKPOINTS, checkpoint.server_round)
    message = "the run in %s goes on after round %d of %d"
    logger.info(message, directory.path, checkpoint.server_round, config.run.rounds)
    return directory


def _leave(checkpoint: Checkpoint, work: Workspace, strategy: Guarded) -> None:
    """Leave a run that has all its rounds as it is, but for results that it may have been killed before writing."""
    config = work.config
    directory = RunDirectory(run_path(config))
    complete = counted(checkpoint.server_round, "complete round")
    logger.warning("nothing to do: %s has %s, and run.rounds=%d", directory.path, complete, config.run.rounds)
    if checkpoint.server_round == config.run.rounds:
        _finish(directory, work, strategy, checkpoint.arrays)


def build_strategy(work: Workspace) -> tuple[Guarded, ArrayRecord]:
    """Build the strategy of a run and the arrays that it starts from.

    In an S-run without ``bias_back`` the arrays hold no biases: no bias ever travels. In a SOLO run there are none.
    """
    config, state, format = work.config, work.initial_state, work.format
    own_data = config.data.source == OWN
    base, metrics = build_checked(_tested(work)), train_metrics(config)
    bounds: dict[str, Any] = {
        "scales": {name: scale_of(array) for name, array in state.items()},
        # Of data of their own, nodes say at the opening question how many samples they have.
        "examples": MAXIMUM_EXAMPLES if own_data else max(map(len, work.partitions)),
        "test_examples": MAXIMUM_EXAMPLES if own_data else len(work.dataset.test_labels),
        "steps": partial(local_steps, config),
        "control": control_specs(format.sent_specs) if client_side(config).control_variates else {},
        "packing": work.packing,
    }
    options: dict[str, Any] = {
        "seed": config.run.seed,
        "minimum_replies": minimum_replies(config),
        "participation": config.strategy.participation,
        "update_bound": config.strategy.update_bound,
        "weighing": weighing(config),
    }
    if mute_potentials(config.quantization):
        logger.warning(
            "quantization.clip=%g: the largest level of a quantised potential, 1.2 q, is no more than the threshold, "
            "so no neuron fires; take more than 0.84, as q of snnTorch's state_quant, too",
            config.quantization.clip,
        )
    sent = ArrayRecord({name: state[name] for name in format.sent_specs})
    if config.strategy.secure_aggregation:
        spec = UpdateSpec(arrays=format.specs, metrics=metrics, **bounds)
        return secured(base, spec, work), sent
    if not isinstance(format, Converted):
        return Guarded(base, UpdateSpec(arrays=format.specs, metrics=metrics, **bounds), **options), sent
    strategy = Spiking(base, format, metrics=metrics, **network_rule(config), **bounds, **options)
    if exposed := exposed_biases(work.graph, config.conversion.calibration, state, work.dataset.input_shape):
        logger.warning(
            "conversion.calibration=%s shifts no bias of %s: an update holds these private biases as they are, or "
            "folded with its own batch normalisation",
            config.conversion.calibration,
            ", ".join(exposed),
        )
    return strategy, sent


def secured(base: Strategy, spec: UpdateSpec, work: Workspace) -> Secure:
    """Wrap a base strategy in secure aggregation, as a run is configured."""
    strategy = work.config.strategy
    private = work.config.privacy.mechanism == "distributed"
    layout = (noisy_sum if private else summed)(
        work.config,
        work.format,
        examples=1 if strategy.weighting == "uniform" else spec.examples,
        follows=network_rule(work.config)["follows"],
    )
    return Secure(
        base,
        spec,
        layout,
        seed=work.config.run.seed,
        minimum_replies=minimum_replies(work.config),
        participation=strategy.participation,
        update_bound=strategy.update_bound,
        tolerance=secure_tolerance(work.config),
        timeout=strategy.timeout,
    )


def _tested(work: Workspace) -> Config:
    """Return the configuration, in which all nodes test what they receive if nobody else has anything to test it on."""
    config = work.config
    if len(work.server_data.test_labels) or config.strategy.fraction_evaluate or not client_side(config).uploads:
        return config
    logger.warning("this server has no data of its own (data.root): every node tests the network that it receives")
    return replace(config, strategy=replace(config.strategy, fraction_evaluate=1.0))


def local_steps(config: Config, examples: int) -> int:
    """Return how many steps the optimiser of a client with so many training examples takes in a round."""
    return config.training.epochs * batch_count(examples, config.training.batch_size)


def _finish(directory: RunDirectory, work: Workspace, strategy: Guarded, arrays: ArrayRecord) -> None:
    config = work.config
    if arrays:
        name, kind = (SNN_FILE, NATIVE_KIND) if spikes_natively(config) else (ANN_FILE, "ann")
        about = {"schema": 1, "model": config.model.name, "rounds": config.run.rounds, "kind": kind}
        write_arrays(directory.path / name, deployed(work.model, arrays.to_torch_state_dict()), about)
    if strategy.network is not None:
        save(strategy.network, directory.path / SNN_FILE)
    plot_accuracy({config.run.name: read_metrics(directory.path)}, [directory.path / name for name in FIGURE_FILES])


def tell(row: Row) -> None:
    """Write what came of a round into Flower's log: all that is seen of a ServerApp on another machine."""
    found = [row[f"server_{kind}_accuracy"] for kind in ("snn", "ann")]
    accuracies = ", ".join(
        f"server {kind} {value:.3f}" for kind, value in zip(("SNN", "ANN"), found, strict=True) if value is not None
    )
    if (tested := row["client_received_accuracy_weighted"]) is not None:
        accuracies = ", ".join(filter(None, [accuracies, f"at the nodes {tested:.3f}"]))
    counts = ", ".join(f"{row[key]} {key}" for key in ("replies", "failed", "refused", "excluded"))
    kept = "" if row["aggregated"] else "; the old weights are kept"
    log(INFO, "round %d: %s; %s%s", row["round"], accuracies or "no server network", counts, kept)


@contextmanager
def refusals_in_the_log() -> Iterator[None]:
    """Write a mistake, or a full disk, into Flower's log as a line, not as the traceback that Flower would add.

    The log is all that whoever follows a run from another machine learns.
    """
    try:
        yield
    except (*MISTAKES, RunBrokenOffError) as error:
        if isinstance(error, MISTAKES):
            log(ERROR, "%s: %s", REFUSED, error)
        logging.getLogger("flwr").addFilter(_without_traceback)
        raise


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (*MISTAKES, RunBrokenOffError)):
        record.msg, record.args, record.exc_info = "%s: %s", (record.getMessage(), error), None
    return True


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation that nobody in this process watches."""
    end_in_good_order()
    with refusals_in_the_log():
        config = unflatten(context.run_config)
        run(grid, config, tell)
        rows = read_metrics(run_path(config))
        if (failure := nothing_valid(rows)) is not None:
            log(ERROR, "%s: %s", FAILED, failure)
            return
        for line in shortcomings(config, rows):
            log(WARNING, "%s: %s", NOT_AS_CONFIGURED, line)
