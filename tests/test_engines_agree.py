"""The repository itself as a Flower app: the same weights on every engine, and by ``flower-simulation``."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from flwr_local import (
    BINARIES,
    TIMEOUT,
    free_port,
    kill_processes,
    lingering_processes,
    local_superlink,
    needs_proc,
    processes_with,
)  # fmt: skip
from ray_clusters import Running
from safetensors.torch import load_file
from shared import Shared

from clients.client_app import app as client_app
from experiments.engines.in_process import run_in_process
from snnfl.config import compose, flatten
from strategies.run_directory import ANN_FILE, SNN_FILE, read_metrics
from strategies.server_app import app as server_app

REPOSITORY = Path(__file__).parents[1]
OVERRIDES = [
    "run.rounds=2",
    "training.epochs=1",
    "conversion.steps=8",
    "data.partition=dirichlet",
    "data.augment=true",
    "strategy.fraction_train=0.7",
    "strategy.participation=0.9",
    "data.training_images=240",
    "data.test_images=100",
    "data.clients=3",
]


NATIVE = [
    "strategy.spiking=false",
    "model.neuron=lif",
    "model.time_steps=4",
    "model.encoding=poisson",
    "model.learn_beta=true",
    "training.optimizer=adam",
    "training.learning_rate=0.002",
]
"""Clients that train spiking networks, by which random draws and learned leaks travel."""


NOISED = [
    "privacy.mechanism=distributed",
    "privacy.noise_multiplier=0.3",
    "privacy.noise_seed=4",
    "data.partition=iid",
    "evaluation.clients=false",
    "model.batch_norm=false",
    "strategy.minimum_replies=3",
]
"""Clients that add shares of the noise themselves."""


def played_in_process(folder: Path, *more: str) -> Path:
    """Play a run in this process; return its folder."""
    config = compose(None, [*OVERRIDES, *more, f"run.directory={folder}"])
    run_in_process(server_app, client_app, run_config=flatten(config), clients=3)
    return folder / "run"


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that the others must equal."""
    return played_in_process(tmp_path_factory.mktemp("in-process"))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run of spiking clients that the others must equal."""
    return played_in_process(tmp_path_factory.mktemp("native"), *NATIVE)


def assert_equal_runs(found: Path, expected: Path) -> None:
    """All final networks are equal bit for bit, and so is what was measured of them."""
    names = [name for name in (ANN_FILE, SNN_FILE) if (expected / name).exists()]
    assert names
    for name in names:
        ours, theirs = load_file(found / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    measured = ("round", "server_snn_accuracy", "server_ann_accuracy", "client_ann_accuracy_mean", "bytes_up")
    measured += ("client_snn_accuracy_mean", "firing_rates", "synaptic_operations")
    rows, wanted = ([{key: row[key] for key in measured} for row in read_metrics(run)] for run in (found, expected))
    assert rows == wanted
    assert [row["round"] for row in rows] == [1, 2]


def toml(overrides: list[str]) -> str:
    """Write overrides as Flower reads them: text in quotes, numbers and truth values without."""
    pairs = (item.split("=", 1) for item in overrides)
    bare = re.compile(r"[\d.]+|true|false")
    return " ".join(f"{key}={value}" if bare.fullmatch(value) else f'{key}="{value}"' for key, value in pairs)


@pytest.mark.ray
@pytest.mark.flwr
@needs_proc
def test_flower_simulation_gives_the_same_weights(in_process: Path, tmp_path: Path, forked: Path) -> None:
    """How the command starts alone: ``tests/experiments/test_flower_simulation.py``."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SNNFL_TEST": str(tmp_path)}
    command = [forked / "flower-simulation", "--app", str(REPOSITORY), "--num-supernodes", "3"]
    config = toml([*OVERRIDES[:-1], f"run.directory={tmp_path}"])
    done = subprocess.run(
        [*command, "--run-config", config], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(tmp_path / "run", in_process)
    assert not lingering_processes("SNNFL_TEST", str(tmp_path))


def snnfl_run(env: Mapping[str, str], folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run ``snnfl run`` in a process of its own, with an empty configuration file and these options."""
    (folder / "config.yaml").write_text("{}")
    command = [BINARIES / "snnfl", "run", "config.yaml", *OVERRIDES, *overrides]
    environment = {**env, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.mark.ray
@pytest.mark.engine
@needs_proc
def test_the_ray_engine_gives_the_same_weights(in_process: Path, tmp_path: Path) -> None:
    env = {**os.environ, "SNNFL_TEST": str(tmp_path)}
    done = snnfl_run(env, tmp_path, "engine.name=ray", "engine.cpus_per_client=1", "run.directory=here")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "S-FedAvg round 2/2  server SNN" in done.stdout
    assert_equal_runs(tmp_path / "here" / "run", in_process)
    assert not lingering_processes("SNNFL_TEST", str(tmp_path))


@pytest.mark.flwr
@pytest.mark.engine
@needs_proc
def test_the_deployment_engine_gives_the_same_weights(in_process: Path, tmp_path: Path) -> None:
    """Where nothing is prepared: no configuration of Flower's, none of its variables, its programs not on the PATH."""
    home = tmp_path / "flwr-home"
    prepared = {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "PATH"}
    env = {name: value for name, value in os.environ.items() if name not in prepared}
    env |= {"FLWR_HOME": str(home), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()), "PATH": "/usr/bin:/bin"}
    try:
        options = ["engine.name=deployment", "engine.connection=local", "run.directory=here"]
        done = snnfl_run(env, tmp_path, *options)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        assert "Successfully started run" in done.stdout
        assert "results: here/run/" in done.stdout
        assert_equal_runs(tmp_path / "here" / "run", in_process)
        assert not lingering_processes("FLWR_HOME", str(home))
    finally:
        kill_processes("FLWR_HOME", str(home))


def test_a_second_run_of_spiking_clients_is_bit_identical(native: Path, tmp_path: Path) -> None:
    again = played_in_process(tmp_path, *NATIVE)
    assert_equal_runs(again, native)
    assert (again / SNN_FILE).read_bytes() == (native / SNN_FILE).read_bytes()


@dataclass(frozen=True)
class Site:
    """An engine that is there already, so that no run need start it.

    Attributes:
        snnfl: The command, which is forked.
        environment: Of its processes.
        options: Of a run there.
        lives: Tells whether it is still there.
    """

    snnfl: Path
    environment: Mapping[str, str]
    options: Sequence[str]
    lives: Callable[[], bool]

    def play(self, folder: Path, *more: str, said: str = "") -> Path:
        """Play a run, which prints what is ``said``; return its folder."""
        (folder / "config.yaml").write_text("{}")
        command = [self.snnfl, "run", "config.yaml", *OVERRIDES, *more, "run.directory=here", *self.options]
        environment = {**self.environment, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        assert said in done.stdout
        return folder / "here" / "run"


@contextmanager
def on_ray(folder: Path, forked: Path) -> Iterator[Site]:
    """Start a cluster, of processes that start alone; the run is forked."""
    with Running() as cluster:
        options = ["engine.name=ray", "engine.cpus_per_client=1", f"engine.address={cluster.address}"]
        yield Site(forked / "snnfl", os.environ, options, lambda: bool(cluster.remaining_processes_alive()))


@contextmanager
def on_a_superlink(folder: Path, forked: Path) -> Iterator[Site]:
    """Start a SuperLink of this machine."""
    with local_superlink(folder, forked) as environment:
        options = ["engine.name=deployment", "engine.connection=local"]
        home = environment["FLWR_HOME"]
        yield Site(forked / "snnfl", environment, options, lambda: bool(processes_with("FLWR_HOME", home)))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(on_ray, marks=pytest.mark.ray, id="ray"),
        pytest.param(on_a_superlink, marks=pytest.mark.flwr, id="deployment"),
    ],
)
def sites(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forked: Path
) -> Iterator[Shared[Site]]:
    """An engine that tests share while they pass; how a run starts one, and ends it, is for the tests above."""
    make = lambda: request.param(tmp_path_factory.mktemp("site"), forked)  # noqa: E731
    with Shared(make, lambda site: site.lives()) as shared:
        yield shared


@needs_proc
def test_spiking_clients_get_the_same_weights_on_every_engine(
    native: Path, tmp_path: Path, sites: Shared[Site]
) -> None:
    site = sites.get()
    said = "FedAvg (LIF) round 2/2  server SNN" if "engine.name=ray" in site.options else "FedAvg (LIF)"
    assert_equal_runs(site.play(tmp_path, *NATIVE, said=said), native)


@needs_proc
def test_control_variates_travel_and_stay_on_every_engine(tmp_path: Path, sites: Shared[Site]) -> None:
    """SCAFFOLD's messages have a record more, its clients a state of their own beside the biases."""
    scaffold = ["strategy.name=scaffold"]
    config = compose(None, [*OVERRIDES, *scaffold, f"run.directory={tmp_path}", "run.name=expected"])
    run_in_process(server_app, client_app, run_config=flatten(config), clients=3)
    assert_equal_runs(sites.get().play(tmp_path, *scaffold), tmp_path / "expected")


@pytest.mark.parametrize("privacy", [[], NOISED], ids=["masks", "noise"])
@needs_proc
def test_masks_leave_the_same_sum_on_every_engine(tmp_path: Path, sites: Shared[Site], privacy: list[str]) -> None:
    """Keys differ from run to run and nowhere agree; what is left of them in a sum is nothing, to the bit.

    So it is with noise that clients add inside of the masks, of one seed.
    """
    secure = ["strategy.secure_aggregation=true", "strategy.fraction_train=1", "strategy.participation=1", *privacy]
    config = compose(None, [*OVERRIDES, *secure, f"run.directory={tmp_path}", "run.name=expected"])
    run_in_process(server_app, client_app, run_config=flatten(config), clients=3)
    assert_equal_runs(sites.get().play(tmp_path, *secure), tmp_path / "expected")


def test_a_second_run_is_bit_identical(in_process: Path, tmp_path: Path) -> None:
    assert_equal_runs(played_in_process(tmp_path), in_process)
    for name in (ANN_FILE, SNN_FILE):
        assert (tmp_path / "run" / name).read_bytes() == (in_process / name).read_bytes()
