"""The audit of an app that isn't ours, from the recording to the report; the app is that of the how-to."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from foreign import edit, imported, run_app, write_app

import snnfl
from experiments import cli
from snnfl.auditing.foreign import App
from snnfl.auditing.recording import Recording, read_recording
from snnfl.config import ConfigError

OPTIONS = ("--loss", "cross_entropy", "--batch-size", 2, "--epochs", 1, "--momentum", 0, "--weight-decay", 0)
NORMALISED = ("--mean", 0.5, "--std", 0.5)
ATTACK = ("--attack", "inverting_gradients", "--round", 1, "--iterations", 40)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return run_app(write_app(tmp_path_factory.mktemp("app")), clients=4)


@pytest.fixture
def audit(app, tmp_path, monkeypatch, capsys):
    """Run the command in the app's folder; return its status, its lines, and the scorecard if there is one."""
    monkeypatch.chdir(app)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments, recording="runs/recorded"):
        command = ["snnfl", "audit", recording, "--output", tmp_path, *arguments]
        monkeypatch.setattr("sys.argv", [str(part) for part in command])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            cli.main()
            status = 0
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        scorecard = tmp_path / "scorecard.json"
        return status, captured.out + captured.err, json.loads(scorecard.read_text()) if scorecard.exists() else None

    yield run
    sys.modules.pop("task", None)


def test_a_client_that_sent_no_numbers_is_named_before_the_attacks_and_in_the_report(app, audit, tmp_path):
    recording = tmp_path / "of-its-own"
    shutil.copytree(app / "runs/recorded", recording)
    first = next(read_recording(recording))
    nothing = {name: torch.full_like(array, torch.nan) for name, array in first.exchange.received.items()}
    Recording(recording, 10**9).write_received(1, first.partition, nothing, first.metrics)
    data = ("--data", "task:public_images", "--truth", "truth")
    status, told, found = audit("--model", "task:Net", *OPTIONS, *NORMALISED, *ATTACK, *data, recording=recording)
    assert status == 0, told
    assert [entry["victims"] for entry in found] == [3]
    (line,) = [line for line in told.splitlines() if line.startswith("not attacked: ")]
    assert "round 1, node " in line
    assert "doesn't fit --model" in line
    assert line.removeprefix("not attacked: ").partition(":")[0] in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
    alone = ("--client", first.partition)
    status, told, _ = audit("--model", "task:Net", *OPTIONS, *NORMALISED, *ATTACK, *data, *alone, recording=recording)
    assert status == 2
    assert f"; not attacked: {line.removeprefix('not attacked: ')}" in told


def test_it_finds_images_beyond_the_floor(audit, tmp_path):
    data = ("--data", "task:public_images", "--truth", "truth")
    status, told, (entry,) = audit("--model", "task:Net", *OPTIONS, *NORMALISED, *ATTACK, *data)
    assert status == 0, told
    assert "as the server told its clients: learning_rate=0.1\n" in told
    assert "not given" not in told
    assert (entry["run"], entry["algorithm"], entry["victims"]) == ("recorded", "FedAvg", 4)
    assert (entry["verdict"], entry["setting"]) == ("leaks", "realistic")
    assert entry["value"] > entry["floor"]["psnr"] + 3
    assert entry["metrics"]["label_accuracy"]["value"] == 1
    assert entry["threat_model"]["images"] == 2
    page = (tmp_path / "report.html").read_text()
    assert "original" in page
    assert "FedAvg of another Flower app" in page


def test_without_the_truth_there_are_pictures_and_no_scores(audit, tmp_path):
    options = ("--model", "task.py:Net", "--input-shape", "1,8,8", *OPTIONS, *NORMALISED, *ATTACK)
    status, told, (entry,) = audit(*options)
    assert status == 0, told
    assert "without --truth there are pictures, and no scores" in told
    assert (entry["verdict"], entry["value"], entry["victims"]) == ("not scored", None, 4)
    page = (tmp_path / "report.html").read_text()
    assert "Nobody told the original" in page
    assert page.count("data:image/png") >= 4


def test_without_public_images_the_floors_are_grey_and_colour(audit):
    options = ("--model", "task:Net", "--input-shape", "1,8,8", *OPTIONS, *NORMALISED, *ATTACK, "--truth", "truth")
    status, told, (entry,) = audit(*options)
    assert status == 0, told
    assert entry["floor"]["name"] in ("grey", "mean_colour")
    assert entry["verdict"] == "leaks"
    assert entry["floor"]["identified"] == 0.5  # one of a client's own two
    assert "public_images" not in entry["threat_model"]["facts"]


def test_what_is_not_said_is_refused_with_the_way_out(audit):
    status, told, (entry,) = audit("--model", "task:Net", "--input-shape", "1,8,8", *NORMALISED, *ATTACK)
    assert status == 3
    assert "the attacker doesn't know it: --loss, --batch-size, --epochs, --momentum, --weight-decay\n" in told
    assert "need the fact optimizer, as all of several local steps, want both --momentum and --weight-decay\n" in told
    assert entry["verdict"] == "refused"
    assert "needs batch_size, epochs, loss" in entry["refusal"]


def test_what_the_messages_contradict_is_told(audit):
    arguments = ("--model", "task:Net", "--input-shape", "1,8,8", *NORMALISED, *ATTACK)
    _, told, _ = audit(*arguments, "--learning-rate", "0.2")
    counts = "--learning-rate 0.2 counts, though the server told its clients 0.1; leave --learning-rate out to take"
    assert f"{counts} what it told\n" in told
    _, told, _ = audit(*arguments, "--learning-rate", "0.1")
    assert "told its clients" not in told


def test_dropout_is_told(audit, app, tmp_path):
    text = (app / "task.py").read_text().replace("self.fc = ", "self.drop = nn.Dropout(0.5)\n        self.fc = ")
    (tmp_path / "dropping.py").write_text(text)
    status, told, _ = audit("--model", f"{tmp_path}/dropping.py:Net", "--input-shape", "1,8,8", *NORMALISED, *ATTACK)
    assert status == 3, told  # for the attack is refused
    assert "attacks leave out the dropout of drop, so clients may leak more than they find" in told


def test_an_attack_on_other_updates_is_named(audit):
    options = ("--model", "task:Net", "--input-shape", "1,8,8", *NORMALISED, "--attack", "snn_naive")
    status, told, _ = audit(*options)
    assert status == 2
    assert "snn_naive attacks converted updates, those of this run are plain ones" in told


def test_from_python_it_is_the_same(app, tmp_path):
    with imported(app) as modules:
        said = App(model=modules["task"].Net(), input_shape=(1, 8, 8), mean=(0.5,), std=(0.5,), truth=app / "truth")
    options = {"attacks": ["inverting_gradients"], "rounds": [1], "iterations": 2, "output": tmp_path}
    with pytest.raises(ConfigError, match="is of one recording"):
        snnfl.audit([app / "runs/recorded"] * 2, app=said, progress=False, **options)
    known = replace(said, loss="cross_entropy", batch_size=2, epochs=1)
    (entry,) = snnfl.audit(app / "runs/recorded", app=known, progress=False, **options).entries
    assert (entry["victims"], entry["value"] > 0) == (4, True)


SHAPE = ("--input-shape", "1,8,8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "task:Q"), "task has no Q; known: DataLoader, Net, TensorDataset, load_data, load_digits, pub"),
        (OPTIONS, "--loss: a run of ours knows it; for another Flower app's recording say --model, too"),
        (("--model", "task"), "--model task: expected MODULE:FUNCTION"),
        (("--model", "task:Nett"), "--model task:Nett: task has no Nett; did you mean 'Net'?"),
        ((), "holds the recording of another Flower app; say what it trains, by --model"),
        (("--model", "tusk.py:Net"), "--model tusk.py:Net: FileNotFoundError: tusk.py: no such file"),
        (("--model", "task:load_digits"), "returns Bunch; expected a torch.nn.Module"),
        (("--model", "task:Net", *NORMALISED), "--input-shape: say the shape of an image, such as 3,32,32"),
        (("--model", "task:Net", "--input-shape", "8,8"), "--input-shape 8,8: expected channels, height and width"),
        (("--model", "task:Net", *SHAPE), "--mean: say how clients normalise their pixels"),
        (("--model", "task:Net", *SHAPE, "--mean", "half", "--std", "1"), "--mean half: expected numbers with commas"),
        (("--model", "task:Net", *SHAPE, *NORMALISED, "--loss", "hinge"), "--loss hinge: attacks repeat cross_entropy"),
        (("--model", "task:Net", *NORMALISED, "--input-shape", "1,9,9"), "--model fails on it"),
        (("--model", "task:Net", *NORMALISED, "--data", "digitz"), "--data digitz: unknown data set; did you mean"),
        (("--model", "task:Net", *NORMALISED, "--data", "task:Net"), "--data task:Net: "),
        (("--model", "task:Net", "--data", "task:public_images", "--input-shape", "3,8,8"), "shape 3,8,8: images"),
        (("--model", "task:Net", *NORMALISED, "--data", "iris"), "--data iris: holds table, and of another app"),
        (("--model", "task:Net", *SHAPE, *NORMALISED, "--truth", "nowhere"), "--truth nowhere: no such folder"),
        (("--model", "task:Net", *SHAPE, *NORMALISED, "--round", "3"), "round 3 is not recorded"),
        (("--model", "task:Net", *SHAPE, *NORMALISED, "--client", "99"), "client 99 is not recorded"),
        (("--model", "task:Net", *SHAPE, *NORMALISED, "--labels"), "the labels cannot be given"),
        (("--model", "task:Net", *SHAPE, *NORMALISED, "runs/recorded"), "is of one recording, and there are 2"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(audit, arguments, words):
    status, told, scorecard = audit(*arguments)
    assert (status, scorecard) == (2, None), told
    assert words in told
    assert len(told.splitlines()) == 1


def test_another_model_names_the_first_array(audit, app, tmp_path):
    (tmp_path / "other.py").write_text((app / "task.py").read_text().replace("12 * 64, 10", "12 * 64, 9"))
    status, told, _ = audit("--model", f"{tmp_path}/other.py:Net", *SHAPE, *NORMALISED)
    assert status == 2
    assert "sent.safetensors: 'fc.weight' doesn't fit --model: expected float32[9, 768], found float32[10, 768]" in told


def test_no_recording_says_what_to_do(audit, tmp_path):
    status, told, _ = audit("--model", "task:Net", *SHAPE, *NORMALISED, recording=str(tmp_path))
    assert status == 2
    assert "no recording; run with audit.record=true, or another Flower app with Audited" in told


def test_a_recording_that_is_not_there_is_called_so(audit, tmp_path):
    status, told, _ = audit("--model", "task:Net", *SHAPE, *NORMALISED, recording=str(tmp_path / "nowhere"))
    assert (status, told) == (2, f"snnfl: {tmp_path / 'nowhere'}: no such folder; give that of the recording\n")
    status, told, _ = audit("--model", "task:Net", *SHAPE, *NORMALISED, "--side-channel")
    assert status == 2
    assert told.endswith("--side-channel: asks thresholds of S-updates, and no client here sends any; leave it out "
                         "with --model\n")  # fmt: skip


def test_the_weights_are_those_of_the_app_without_it(app, tmp_path):
    edit(
        write_app(tmp_path) / "server_app.py",
        "Audited(FedAvg(fraction_evaluate=0.0), ",
        "(FedAvg(fraction_evaluate=0.0)",
    )
    edit(tmp_path / "server_app.py", ')Path(__file__).parent / "runs/recorded")', "))")
    edit(tmp_path / "client_app.py", 'mods=[ground_truth(own_images, Path(__file__).parent / "truth")]', "")
    run_app(tmp_path, clients=4)
    assert not (tmp_path / "runs").exists()
    found, expected = (torch.load(folder / "final_model.pt") for folder in (app, tmp_path))
    assert all(torch.equal(found[name], array) for name, array in expected.items())
