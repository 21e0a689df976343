"""A new user's mistakes, at every command: each gets one line that says what is wrong and what may be meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import in_this_process as snnfl
from safetensors.torch import save_file
from torch import ones

FILES = {
    "good.yaml": "run: {rounds: 1}\n",
    "study.yaml": "matrix: {data.clients: [3, 4]}\n",
    "tab.yaml": "run:\n\trounds: 3\n",
    "twice.yaml": "data:\n  clients: 3\n  clients: 4\n",
    "empty.yaml": "",
    "brace.yaml": "run: {rounds: 3\ndata: {clients: 2}\n",
    "notes.txt": "my notes\n",
    "same.yaml": "matrix:\n  algorithm:\n    A: {}\n    B: {}\n",
    "seeds.yaml": "matrix: {data.clients: [3]}\nseeds: 3\n",
    "axis.yaml": "matrix:\n  algorithm: [fedavg, fedprox]\n",
    "runs/done/config.yaml": "run: {rounds: 1}\n",
}

MISTAKES = [
    ("run tab.yaml", "tab.yaml, line 2: a tab; indent with spaces"),
    ("run twice.yaml", "twice.yaml, line 3: the key 'clients' is given twice"),
    ("run brace.yaml", "brace.yaml, line 1: nothing closes it with }, or a comma is missing"),
    ("run empty.yaml", "empty.yaml: it is empty; expected sections such as run, data and model, or {} for"),
    ("run notes.txt", "notes.txt: expected sections such as run, data and model, or {} for the default"),
    ("run data.clients=5 good.yaml", "data.clients=5: options come after the file, as in FILE.yaml data.clients=5"),
    ("run good.yaml good.yaml", "override 'good.yaml': expected key=value, for example data.clients=5; one"),
    ("run runs/done", "runs/done: it is a folder; did you mean runs/done/config.yaml?"),
    ("run study.yaml", "study.yaml: it is a study, not the configuration of a run: snnfl compare study.yaml"),
    ("run god.yaml", "god.yaml: no such file; did you mean good.yaml?"),
    ("run good.yaml run.device=gpu", "run.device=gpu: no device of torch's; did you mean 'cuda'?"),
    ("run good.yaml data.alpha=0.5", "unknown key 'data.alpha' with value 0.5; did you mean 'data.beta'?"),
    ("run good.yaml num_clients=5", "unknown section 'num_clients' with value 5; did you mean 'data.clients'?"),
    ("run good.yaml lr=0.1", "unknown section 'lr' with value 0.1; did you mean 'training.learning_rate'?"),
    ("run good.yaml model.neuron=LIF", "expected one of relu, if, lif, rlif, alif; did you mean 'lif'?"),
    ("run good.yaml data.partition=non-iid", "quantity, pathological, natural; did you mean 'dirichlet'?"),
    ("run good.yaml strategy.name=S-FedAvg", "strategy.name=S-FedAvg: unknown strategy; did you mean 'fedavg'?"),
    ("run good.yaml data.source=MNIST", "data.source=MNIST: unknown data set; did you mean 'mnist'?"),
    ("run good.yaml model.weights=snn.safetensors", "it holds a spiking network, and model.neuron=relu takes an ANN's"),
    ("run good.yaml model.weights=runs/done", "it is a folder; take its final_ann.safetensors"),
    ("run good.yaml model.weights=notes.txt", "model.weights=notes.txt: it is no file of safetensors ("),
    ("run good.yaml audit.rounds=[1,99]", "audit.rounds=[1, 99]: there is no round 99; set run.rounds=99 or more, or"),
    ("run good.yaml audit.clients=[99]", "audit.clients=[99]: there is no client 99; with data.clients="),
    ("demo good.yaml", "override 'good.yaml': expected key=value"),
    ("compare good.yaml", "good.yaml: unknown key 'run'; a configuration is run by: snnfl run good.yaml"),
    ("compare empty.yaml", "empty.yaml: it is empty; expected the keys of a study, such as matrix and seeds"),
    ("compare tab.yaml", "tab.yaml, line 2: a tab"),
    ("compare runs", "runs: it is a folder; name a YAML file"),
    ("compare data.clients=3 study.yaml", "data.clients=3: options come after the file"),
    ("compare study.yaml data.clients=5", "study.yaml: data.clients=5: the matrix sets this option; change it there"),
    ("compare study.yaml run.seed=3", "study.yaml: run.seed is the study's own in every cell; list seeds under"),
    ("compare same.yaml", "algorithm=A, seed=0 and algorithm=B, seed=0 are one and the same run"),
    ("compare seeds.yaml", "seeds=3: expected a list of whole numbers, such as [0, 1, 2]"),
    ("compare axis.yaml", "matrix.algorithm: 'algorithm' is no option, so it needs options by label"),
    ("audit data.clients=3", "data.clients=3: an audit takes folders of runs, whose options stand"),
    ("audit runs/done/config.yaml", "it is a file; give the folder of a run; did you mean runs/done?"),
    ("audit good.yaml", "good.yaml: it is a file; give the folder of a run, such as runs/demo"),
    ("audit nowhere", "nowhere: no config.yaml of a run here; give the folder of a run, such as runs/demo"),
    ("audit", "RUN_DIR: give the folder of a run, or --list for the attacks"),
    ("export good.yaml", "good.yaml: it is no file of safetensors ("),
    ("export ann.safetensors", "ann.safetensors: an ANN, not a spiking network ('snn'), which an S-run's final_snn"),
    ("export runs/done", "runs/done: no final_snn.safetensors; only a finished run leaves one"),
    ("deploy check good.yaml", "good.yaml: it is a file; the folder of the deployment comes first"),
    ("deploy run good.yaml fleet", "good.yaml: it is a file; the folder of the deployment comes first"),
    ("deploy check runs", "runs holds no nodes.json; make a deployment with snnfl deploy init runs"),
    ("data fetch fashion-mnist", "fashion-mnist: unknown data set; did you mean 'fashion_mnist'?"),
    ("data plot data.clients=3 good.yaml", "data.clients=3: options come after the file"),
    ("data plot good.yaml --output runs", "runs: unknown picture format ''; use .svg or .png"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    for kind in ("ann", "snn"):
        about = {"schema": 1, "kind": kind, "graph": {}} if kind == "snn" else {"schema": 1, "kind": kind}
        save_file({"fc.weight": ones(1)}, f"{kind}.safetensors", metadata={"snnfl": json.dumps(about)})


@pytest.mark.parametrize(("command", "line"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_line(command, line, capsys):
    before = sorted(map(str, Path().rglob("*")))
    assert snnfl(*command.split()) == 2
    captured = capsys.readouterr()
    [said] = captured.err.splitlines()
    assert said.startswith("snnfl: ")
    assert line in said
    assert not captured.out
    assert sorted(map(str, Path().rglob("*"))) == before
