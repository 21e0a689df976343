"""What `import snnfl` offers (its page of the documentation is executed by tests/documentation/test_pages.py)."""

from __future__ import annotations

import json
import pydoc
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import snnfl

ROOT = Path(__file__).parents[2]
SMALL = {
    "data": {"clients": 2, "training_images": 40},
    "model.name": "mlp",
    "training.epochs": 1,
    "conversion": {"steps": 4, "calibration_images": 8},
    "evaluation.images": 20,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> snnfl.Run:
    folder = str(tmp_path_factory.mktemp("runs"))
    return snnfl.run(SMALL, run={"rounds": 2, "directory": folder, "name": "small"}, progress=False)


def test_the_import_brings_no_library() -> None:
    code = "import sys; before = set(sys.modules); import snnfl; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert imported - set(sys.stdlib_module_names) == {"snnfl"}


def test_help_shows_each_function_with_its_arguments() -> None:
    text = pydoc.render_doc(snnfl, renderer=pydoc.plaintext)
    for name in snnfl.__all__:
        assert f"{name}(" in text, name
    assert "path: Folder of ``report.html``" in text
    description = text.partition("\nCLASSES\n")[0]
    assert all(f"``{name}" in description for name in snnfl.__all__), "before the classes, which pydoc shows first"


def test_what_is_listed_is_what_is_offered() -> None:
    import snnfl.spiking

    assert dir(snnfl) == sorted([*snnfl.__all__, "__version__"])


def test_the_version_is_that_of_the_project() -> None:
    assert snnfl.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_an_unknown_name_is_an_error_of_the_module() -> None:
    with pytest.raises(AttributeError, match="module 'snnfl' has no attribute 'runs'"):
        snnfl.runs  # noqa: B018


def test_a_run_tells_what_its_folder_holds(finished: snnfl.Run) -> None:
    lines = (finished.path / "metrics.jsonl").read_text().splitlines()
    assert finished.metrics == [json.loads(line) for line in lines]
    assert [row["round"] for row in finished.metrics] == [1, 2]
    assert finished.config.data.clients == 2
    assert repr(finished) == f"<Run {finished.path}: 2 of 2 rounds>"
    again = snnfl.load_run(str(finished.path))
    assert (again.config, again.metrics, again.environment) == (finished.config, finished.metrics, finished.environment)


def test_its_networks_compute_what_the_server_measured(finished: snnfl.Run) -> None:
    from snnfl.workspace import Workspace

    data = Workspace(finished.config).dataset
    images, labels = data.normalise(data.test_images), data.test_labels
    network, model = finished.snn(), finished.ann()
    spiking = network.simulate(images, steps=4)[4].argmax(1)
    assert float((spiking == labels).double().mean()) == pytest.approx(finished.metrics[-1]["server_snn_accuracy"])
    assert not model.training
    assert model(images).shape == (len(images), 10)


def test_a_run_without_a_network_says_so(finished: snnfl.Run, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((finished.path / "config.yaml").read_bytes())
    begun = snnfl.load_run(tmp_path)
    assert begun.metrics == []
    with pytest.raises(snnfl.ConfigError, match=r"no final_snn\.safetensors; a finished run leaves it"):
        begun.snn()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": {"client": 5}}, "unknown key 'data.client' with value 5; did you mean 'clients'"),
        ({"data.clients": 0}, r"data\.clients=0"),
        ({"rounds": 5}, "unknown section 'rounds' with value 5; did you mean 'run.rounds'"),
    ],
)
def test_a_mistake_is_what_the_command_prints(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(snnfl.ConfigError, match=message):
        snnfl.run(SMALL, progress=False, **overrides)


def test_a_configuration_is_a_start_for_another(finished: snnfl.Run) -> None:
    longer = snnfl.run(finished.config, run={"rounds": 3, "resume": True}, progress=False)
    assert longer.metrics[:2] == finished.metrics
    assert len(longer.metrics) == 3


def test_one_thing_is_no_plural(tmp_path: Path) -> None:
    assert repr(snnfl.Study(path=tmp_path, runs={}, tables=[])) == f"<Study {tmp_path / 'report.html'}: 0 runs>"
    (tmp_path / "config.yaml").write_text(snnfl.config.to_yaml(snnfl.Config()))
    one = snnfl.Study(path=tmp_path, runs={"only": snnfl.load_run(tmp_path)}, tables=[])
    assert repr(one) == f"<Study {tmp_path / 'report.html'}: 1 run>"


def test_what_isnt_as_configured_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.attendance.shortcomings", lambda config, rows: ["partition 1 never answered"])
    with pytest.warns(UserWarning, match=r"^finished, but not as configured: partition 1 never answered$"):
        snnfl.run(SMALL, run={"rounds": 1, "directory": str(tmp_path)}, progress=False)


def test_an_interrupt_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("experiments.engines.in_process.run_in_process", interrupt)
    with pytest.raises(KeyboardInterrupt):
        snnfl.run(SMALL, run={"directory": str(tmp_path)}, progress=False)


def test_an_audit_returns_the_scorecard(tmp_path: Path) -> None:
    recorded = snnfl.run(
        SMALL,
        run={"rounds": 1, "directory": str(tmp_path)},
        data={"training_images": 8, "minimum_samples": 1},
        audit={"record": True, "ground_truth": True},
        progress=False,
    )
    found = snnfl.audit(recorded, attacks=["closed_form"], iterations=1, controls=False, progress=False)
    assert found.path == recorded.path / "audit"
    assert found.entries == json.loads((found.path / "scorecard.json").read_text())
    assert repr(found).startswith(f"<Audit {found.path / 'report.html'}: 1 ")
    with pytest.raises(snnfl.ConfigError, match=r"runs=\[\]: nothing to audit"):
        snnfl.audit([])
    with pytest.raises(snnfl.ConfigError, match=r"attacks=closed_form: expected a list of names"):
        snnfl.audit(recorded, attacks="closed_form")


@pytest.mark.slow
def test_a_study_returns_its_runs_and_tables(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: two\nmatrix: {strategy.spiking: [true, false]}\n"
        "tables: [{title: Rates, rows: strategy.spiking, value: accuracy}]\n"
    )
    options = {**SMALL, "run": {"rounds": 1, "directory": str(tmp_path)}}
    found = snnfl.compare(study, jobs=2, progress=False, **options)
    assert found.path == tmp_path / "two"
    assert list(found.runs) == ["strategy.spiking=True, seed=0", "strategy.spiking=False, seed=0"]
    for cell, run in zip(found.tables, found.runs.values(), strict=True):
        spiking = run.config.strategy.spiking
        accuracy = run.metrics[-1]["server_snn_accuracy" if spiking else "server_ann_accuracy"]
        assert (cell["row"], cell["mean"], cell["seeds"]) == (str(spiking), accuracy, 1)


def test_convert_needs_a_module_and_images_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    images = torch.randn(64, 1, 4, 4, generator=generator)
    network = snnfl.convert(model, images)
    agree = network.simulate(images, steps=32)[32].argmax(1) == model(images).argmax(1)
    assert float(agree.double().mean()) > 0.9
    paper = snnfl.convert(model, images, snnfl.ConversionConfig(steps=32))
    assert not torch.equal(paper.simulate(images, steps=32)[32], network.simulate(images, steps=32)[32])
