"""The real ``flwr run`` on a local SuperLink."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr_local import flwr_run, lingering_processes, local_superlink, needs_proc, processes_with

MEAN_APP = Path(__file__).parents[1] / "toy_apps" / "mean"


def run_twice(tmp_path: Path) -> None:
    """Run the app, then let its ServerApp fail."""
    with local_superlink(tmp_path, 3) as env:
        text = flwr_run(MEAN_APP, env, f'data.clients=3 output="{tmp_path}/result.json"')
        assert "Received 3 results and 0 failures" in text
        assert processes_with("FLWR_HOME", env["FLWR_HOME"])
        flwr_run(MEAN_APP, env, 'failing="server"')


@pytest.mark.ray
@pytest.mark.flwr
@needs_proc
def test_a_run_succeeds_a_failure_is_told_and_no_process_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"finished:failed: .*the server failed"):
        run_twice(tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["clients"] == 3
    np.testing.assert_allclose(result["vector"], [1.0] * 3)  # mean (0*1 + 1*2 + 2*3)/6, three quarters of the way
    assert not lingering_processes("FLWR_HOME", str(tmp_path / "flwr-home"))
