"""``snnfl privatesnn`` on digits: its stages, what an interrupt leaves, and networks of finished runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import experiments.privatesnn.stages as stages
import snnfl
from experiments.cli import app
from experiments.ending import RunFailedError
from experiments.privatesnn.command import make_published
from experiments.privatesnn.network import network_of
from experiments.privatesnn.report import as_csv, from_csv, rows_of
from experiments.privatesnn.setting import Setting
from experiments.privatesnn.study import read_private_study
from snnfl.config import ConfigError
from snnfl.private_snn import PublishedNetwork, affine_parameters, load

STUDY = """
name: study
options: {data.source: digits, data.training_images: 400, data.test_images: 100, model.name: lenet5,
          training.optimizer: adam, training.learning_rate: 0.003, training.epochs: 4}
seeds: [3]
synthesis: {images: 30, iterations: 20, batch: 20}
publishing: {steps: 8, images: 20}
encryption: {images: 30, epochs: 3}
curve: [4]
variants: {images: [10, 30], distillation: [0.7]}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def do(stage: str, path: Path, tmp_path: Path, *overrides: str) -> Setting:
    given = [*overrides, *([] if path.is_dir() else [f"run.directory={tmp_path / 'runs'}"])]
    return make_published(stage, path, given, console=Console(quiet=True)).settings[0]


def same(first: PublishedNetwork, second: PublishedNetwork) -> bool:
    arrays = zip(sorted(first.parameters.items()), sorted(second.parameters.items()), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in arrays)


def test_all_at_once_is_one_after_the_other(study: Path, tmp_path: Path) -> None:
    setting = do("run", study, tmp_path)
    result = json.loads(setting.results.read_text())
    assert set(result["curves"]) == {"synthetic", "encrypted", "synthetic, MMSE", "real", "real, MMSE"}
    assert set(result["curves"]["real"]) == {"4", "8"}
    assert result["ann"] > 0.6
    assert [(each["images"], each["distillation"]) for each in result["variants"]] == [(10, 0.7), (30, 0.7)]
    assert result["variants"][1]["accuracy"] == result["curves"]["encrypted"]["8"]  # the same encryption
    rows = list(rows_of(result))
    assert from_csv(as_csv(rows)) == rows
    for name in ("results.csv", "tables.md", "network-steps.png", "network-images.svg"):
        assert (setting.path.parent / name).stat().st_size > 0
    before = {file: file.stat().st_mtime_ns for file in setting.path.rglob("*.safetensors")}
    do("run", study, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in setting.path.rglob("*.safetensors")} == before
    other = tmp_path / "other"
    for stage in ("synthesize", "convert", "encrypt"):
        apart = do(stage, study, other)
    assert same(load(apart.published), load(setting.published))
    assert not same(load(apart.converted), load(apart.published))


STAGES = ("ann", "synthetic", "converted", "published", "results")


@pytest.mark.parametrize(
    ("option", "first"),
    [
        ("training.epochs=5", "ann"),
        ("data.training_images=399", "ann"),
        ("model.batch_norm=false", "ann"),
        ("synthesis.blur=1", "synthetic"),
        ("publishing.steps=9", "converted"),
        ("encryption.distillation=0.5", "published"),
        ("data.test_images=99", "results"),
        ("encryption.chunk=2", None),
        ("attack.starts=1", None),
        ("run.threads=2", None),
        ("evaluation.images=50", None),
    ],
)
def test_an_option_decides_what_follows_from_it_and_no_more(study: Path, option: str, first: str | None) -> None:
    before, after = (read_private_study(study, options).settings[0] for options in ([], [option]))
    changed = [stage for stage in STAGES if getattr(before, stage) != getattr(after, stage)]
    assert changed == ([] if first is None else list(STAGES[STAGES.index(first) :]))


def test_what_an_attack_got_follows_from_the_attacked_network(study: Path) -> None:
    study.write_text(study.read_text() + "locks: {few steps: {publishing.steps: 2}}\n")
    networks = ("ann", "converted", "encrypted", "random", "few steps")

    def changed(option: str) -> set[str]:
        before, after = (read_private_study(study, options).settings[0] for options in ([], [option]))
        return {each for each in networks if before.stolen(each, "priors") != after.stolen(each, "priors")}

    assert changed("attack.attacks=[priors]") == set()
    assert changed("encryption.decay=0.5") == {"encrypted", "random", "few steps"}
    assert changed("publishing.steps=9") == {"converted", "encrypted", "random"}
    assert changed("attack.starts=1") == changed("data.test_images=99") == set(networks)


def test_other_steps_train_no_other_network(study: Path, tmp_path: Path) -> None:
    do("synthesize", study, tmp_path)
    setting = do("convert", study, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in setting.path.rglob("*.safetensors")}
    other = do("convert", study, tmp_path, "publishing.steps=2")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert {*setting.path.rglob("*.safetensors")} == {*before, other.converted}
    assert (load(setting.converted).steps, load(other.converted).steps) == (8, 2)
    made = json.loads((setting.path / "made.json").read_text())
    assert made[other.converted.name]["publishing"]["steps"] == 2
    assert made[other.converted.name]["on"] == setting.synthetic.name in made


class Killed(Exception):
    pass


def after(count: int) -> Callable[[int], None]:
    calls = iter(range(count))

    def report(done: int) -> None:
        if next(calls, None) is None:
            raise Killed

    return report


def test_what_was_interrupted_ends_with_the_same_bits(study: Path, tmp_path: Path) -> None:
    setting = do("run", study, tmp_path)
    cut = read_private_study(study, [f"run.directory={tmp_path / 'cut'}"]).settings[0]
    cut.path.mkdir(parents=True)
    cut.ann.write_bytes(setting.ann.read_bytes())
    network = network_of(cut)
    with pytest.raises(Killed):
        stages.synthesise_images(cut, network, after(25))  # within the second batch
    assert [file.name for file in cut.synthetic.iterdir()] == ["images-000000.safetensors"]
    with pytest.raises(ConfigError, match="1 file of synthetic images missing; run snnfl privatesnn synthesize"):
        stages.convert_network(cut, network)
    stages.synthesise_images(cut, network, lambda done: None)
    for number in range(2):
        assert stages.part_file(cut, number).read_bytes() == stages.part_file(setting, number).read_bytes()
    stages.convert_network(cut, network)
    assert cut.converted.read_bytes() == setting.converted.read_bytes()
    with pytest.raises(Killed):
        stages.encrypt_network(cut, network, after(3))  # a first report, and each epoch has a batch
    assert not cut.published.exists()
    told: list[int] = []
    stages.encrypt_network(cut, network, told.append)
    assert told[0] == 60  # two epochs were done
    assert cut.published.read_bytes() == setting.published.read_bytes()


def test_a_stage_needs_the_one_before(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run snnfl privatesnn synthesize first"):
        do("convert", study, tmp_path)
    do("synthesize", study, tmp_path)
    with pytest.raises(ConfigError, match="run snnfl privatesnn convert first"):
        do("encrypt", study, tmp_path)


def test_a_damaged_batch_of_images_is_told_of(study: Path, tmp_path: Path) -> None:
    setting = do("synthesize", study, tmp_path)
    file = stages.part_file(setting, 1)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ConfigError, match=r"images-000001.*delete it and run snnfl privatesnn synthesize again"):
        do("convert", study, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"synthesis: {": "synthesis: {imags: 3, "}, "synthesis: .*unknown option 'imags'; did you mean 'images'"),
        ({"steps: 8": "steps: 0"}, "publishing: steps=0: expected at least 1"),
        ({"seeds: [3]": "seeds: three"}, "seeds=three: expected a list of whole numbers"),
        ({"curve: [4]": "curve: [0]"}, "curve=.* expected lengths in time steps"),
        ({"variants: {": "variants: {epochs: [1], "}, "variants=.*expected lists of images and distillation"),
        ({"seeds:": "sedes:"}, "unknown key 'sedes'; did you mean 'seeds'"),
        ({"curve: [4]": "control: 7"}, "control=7: expected true or false"),
        ({"model.name: lenet5": "model.name: lenet5, model.neuron: lif"}, "model.neuron=lif: PrivateSNN converts"),
        (
            {"model.name: lenet5": "model.name: lenet5, training.activation: qcfs"},
            r"study\.yaml: training.activation=qcfs: ",
        ),
        ({"model.name: lenet5": "model.name: lenet5, data.clients: 3"}, "data.clients=3: nobody federates here"),
        (
            {"epochs: 3": "epochs: 3, surrogate: triangle"},
            "encryption: surrogate=triangle: unknown surrogate gradient; did you mean 'triangular'",
        ),
        ({"seeds: [3]": "seeds: [3, 3]"}, "seeds: 3 is given twice"),
        ({"name: lenet5": "name: lenett"}, r"study\.yaml: model\.name=lenett: unknown model; did you mean 'lenet5'"),
        (
            {"seeds: [3]": "seeds: [3]\nmatrix: {data.source: [digits, digit]}", "data.source: digits, ": ""},
            r"study\.yaml: data\.source=digit: data\.source=digit: unknown data set; did you mean 'digits'",
        ),
        ({"curve: [4]": "attack: {judge: lenett}"}, "attack: judge=lenett: unknown model; did you mean 'lenet5'"),
        (
            {"curve: [4]": "locks: {few: {publishing.stepz: 2}}"},
            r"yaml: locks: few: publishing: .*did you mean 'steps'",
        ),
        ({"curve: [4]": "locks: {few: {publishing.steps: 0}}"}, "locks: few: publishing: steps=0: expected at least 1"),
        ({"curve: [4]": "locks: {few: {encryption.surrogate: triangle}}"}, "locks: few: .*did you mean 'triangular'"),
        ({"curve: [4]": "locks: {ann: {publishing.steps: 2}}"}, "locks: ann: a network that is attacked anyway"),
    ],
)
def test_mistakes_are_one_line(study: Path, change: dict[str, str], message: str) -> None:
    text = study.read_text()
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    study.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_private_study(study)
    assert "\n" not in str(error.value)


def test_more_images_than_there_are(study: Path, tmp_path: Path) -> None:
    for stage in ("encrypt", "run"):
        with pytest.raises(
            ConfigError, match=r"encryption\.images=31: there are 30 synthetic images; lower it, or raise"
        ):
            do(stage, study, tmp_path, "encryption.images=31")
    assert not (tmp_path / "runs").exists()  # nothing was computed for it


@pytest.mark.parametrize("spiking", [True, False])
def test_the_network_of_a_finished_run_is_published(tmp_path: Path, spiking: bool) -> None:
    run = snnfl.run(
        {"data": {"clients": 2, "source": "digits"}, "training": {"epochs": 1}, "conversion": {"steps": 8}},
        run={"rounds": 1, "directory": str(tmp_path), "name": "watched"},
        strategy={"spiking": spiking},
        progress=False,
    )
    options = ["synthesis.images=20", "synthesis.iterations=5", "publishing.steps=6", "publishing.images=20"]
    options += ["encryption.images=20", "encryption.epochs=1"]
    with pytest.raises(ConfigError, match="there are 20 synthetic images"):
        do("run", run.path, tmp_path, *options[:-2])
    do("synthesize", run.path, tmp_path, *options[:2])  # what later stages ask for may still be said
    setting = do("run", run.path, tmp_path, *options)
    assert setting.path == run.path / "privatesnn"
    converted, published = load(setting.converted), load(setting.published)
    weights = affine_parameters(converted.graph, converted.parameters)
    if spiking:
        expected = run.snn().parameters
        assert all(torch.equal(array, expected[name]) for name, array in weights.items())
    else:
        images = torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(converted.analog(images), run.ann()(images), rtol=1e-4, atol=1e-4)
    assert not same(converted, published)
    assert "real" not in json.loads(setting.results.read_text())["curves"]
    file = run.path / ("final_snn.safetensors" if spiking else "final_ann.safetensors")
    file.write_bytes(file.read_bytes() + b" ")  # as if the run were played again: nothing of its old network is used
    again = read_private_study(run.path, options).settings[0]
    assert (again.path, again.synthetic.exists(), again.published.exists()) == (setting.path, False, False)
    with pytest.raises(ConfigError, match=r"data\.clients=3: the options of .* stand"):
        do("run", run.path, tmp_path, "data.clients=3")


def test_a_network_that_cannot_be_is_told_of_before_another_is_trained(study: Path, tmp_path: Path) -> None:
    text = study.read_text().replace("data.source: digits, data.training_images: 400, data.test_images: 100,", "")
    study.write_text(text + "matrix: {data.source: [digits, iris]}\n")
    with pytest.raises(ConfigError, match=r"data\.source=iris, seed=3: .*lenet5"):
        do("run", study, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_an_option_that_the_study_sets_is_refused(study: Path) -> None:
    study.write_text(study.read_text() + "matrix: {model.batch_norm: [true, false]}\n")
    for option, wanted in (
        ("run.seed=4", "list seeds under the key seeds"),
        ("model.batch_norm=false", "the matrix sets this option"),
    ):
        with pytest.raises(ConfigError, match=f"{option}: {wanted}"):
            read_private_study(study, [option])
    study.write_text(STUDY + "matrix: {images: {few: {synthesis.images: 20}, many: {synthesis.images: 30}}}\n")
    for option in ("synthesis.images=25", "synthesis={images: 25}"):  # both labels would name one and the same
        with pytest.raises(ConfigError, match=f"{option}: the matrix sets this option"):
            read_private_study(study, [option])


def test_help_teaches() -> None:
    shown = CliRunner().invoke(app, ["privatesnn", "--help"])
    assert shown.exit_code == 0
    for word in ("synthesize", "convert", "encrypt", "run", "without data"):
        assert word in shown.stdout
    shown = CliRunner().invoke(app, ["privatesnn", "run", "--help"])
    assert "snnfl privatesnn run runs/demo" in shown.stdout


def test_an_axis_of_the_matrix_may_vary_how_images_are_made(study: Path) -> None:
    text = study.read_text() + "matrix: {images: {noise: {synthesis.blur: 0}, blurred: {synthesis.blur: 4}}}\n"
    study.write_text(text)
    settings = read_private_study(study, ["synthesis.iterations=7"]).settings
    assert [setting.labels["images"] for setting in settings] == ["noise", "blurred"]
    assert [setting.private.synthesis.blur for setting in settings] == [0, 4]
    assert {setting.private.synthesis.iterations for setting in settings} == {7}
    assert settings[0].ann == settings[1].ann  # one network
    assert settings[0].synthetic != settings[1].synthetic
    study.write_text(STUDY + "matrix: {publishing.steps: [4, 8]}\n")
    assert [each.private.publishing.steps for each in read_private_study(study).settings] == [4, 8]


def test_a_rate_at_which_training_diverges_is_one_line(study: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"seed=3: training diverged .*lower training\.learning_rate"):
        do("synthesize", study, tmp_path, "training.optimizer=sgd", "training.learning_rate=1e30")
