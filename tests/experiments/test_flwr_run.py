"""The real ``flwr run`` on a local SuperLink, which the tests of this file share while they pass."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from flwr_local import flwr_run, lingering_processes, local_superlink, needs_proc, processes_with
from shared import Shared

REPOSITORY = Path(__file__).parents[2]
MEAN_APP = REPOSITORY / "tests" / "toy_apps" / "mean"

pytestmark = [pytest.mark.ray, pytest.mark.flwr, needs_proc]


@pytest.fixture(scope="module")
def superlinks(tmp_path_factory: pytest.TempPathFactory, forked: Path) -> Iterator[Shared[dict[str, str]]]:
    """Local SuperLinks; at the end none of their processes is left."""
    homes: list[Path] = []

    def make() -> AbstractContextManager[dict[str, str]]:
        folder = tmp_path_factory.mktemp("superlink")
        homes.append(folder / "flwr-home")
        return local_superlink(folder, forked)

    with Shared(make, lambda env: bool(processes_with("FLWR_HOME", env["FLWR_HOME"]))) as shared:
        yield shared
    assert not any(lingering_processes("FLWR_HOME", str(home)) for home in homes)


def test_a_run_succeeds(superlinks: Shared[dict[str, str]], tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    text = flwr_run(MEAN_APP, superlinks.get(), f'data.clients=3 output="{output}"', num_supernodes=3)
    assert "Received 3 results and 0 failures" in text
    result = json.loads(output.read_text())
    assert result["clients"] == 3
    np.testing.assert_allclose(result["vector"], [1.0] * 3)  # mean (0*1 + 1*2 + 2*3)/6, three quarters of the way


def test_a_failure_is_told(superlinks: Shared[dict[str, str]]) -> None:
    with pytest.raises(RuntimeError, match=r"finished:failed: .*the server failed"):
        flwr_run(MEAN_APP, superlinks.get(), 'failing="server"', num_supernodes=3)


def test_a_simulation_of_two_nodes_says_how_to_get_more(superlinks: Shared[dict[str, str]], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:  # within this test's time, which is less than strategy.timeout's hour
        flwr_run(REPOSITORY, superlinks.get(), f'data.clients=10 model.name="mlp" run.directory="{tmp_path}"')
    complaint = "Flower simulates 2 SuperNodes, but data.clients=10; say `flwr run … --federation-config"
    assert f"{complaint} num-supernodes=10`, or data.clients=2" in str(error.value)
    assert "finished:failed" in str(error.value)
    assert not list(tmp_path.iterdir())
