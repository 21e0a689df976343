"""What a person sees of a run."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from rich.progress import TextColumn

from experiments.engines.in_process import restored_task_identity
from experiments.progress import BarsOrLines, RoundProgress, WatchedClientApp, algorithm, percent, results_table
from experiments.running import console_of
from snnfl.config import compose


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=160, force_terminal=terminal, color_system=None)


def written(target: Console) -> str:
    file = target.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def row(**values: Any) -> dict[str, Any]:
    return {
        "round": 2,
        "server_snn_accuracy": 0.9125,
        "server_ann_accuracy": 0.5,
        "client_ann_accuracy_mean": 0.75,
        "client_ann_accuracy_std": 0.0312,
        "train_loss": 0.25,
        "refused": 0,
        "failed": 0,
        "aggregated": True,
        "bytes_up": 2_340_000,
        "seconds_round": 1.26,
        **values,
    }


def progress(target: Console, *overrides: str) -> RoundProgress:
    return RoundProgress(compose(None, ["run.rounds=10", "data.clients=20", *overrides]), target)


@pytest.mark.parametrize(("pace", "told"), [(0.0, [0, 1, 2, 3]), (1e6, [0, 3])])
def test_in_a_log_progress_is_lines_at_a_pace(monkeypatch: pytest.MonkeyPatch, pace: float, told: list[int]) -> None:
    monkeypatch.setattr("experiments.progress.PACE", pace)
    target, times = console(), itertools.count()
    columns, about = (TextColumn("{task.description}"),), {"console": target, "get_time": lambda: next(times)}
    with BarsOrLines(*columns, unit="attacks", **about) as bars:
        task = bars.add_task("watched", total=3)
        for _ in range(3):
            bars.advance(task)
    lines = written(target).splitlines()
    assert [line.partition(" in ")[0] for line in lines] == [f"watched: {n} of 3 attacks" for n in told]
    assert ["left" in line for line in lines] == [n in (1, 2) for n in told]


def test_on_a_terminal_progress_is_a_bar_without_lines() -> None:
    target = console(terminal=True)
    with BarsOrLines(TextColumn("{task.description}"), unit="attacks", console=target) as bars:
        bars.advance(bars.add_task("watched", total=3))
    assert "of 3 attacks" not in written(target)


def test_where_there_is_no_terminal_lines_are_whole_and_none_is_blank(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    target = console_of(verbose=False)
    with progress(target) as shown:
        shown.round_done(row())
        target.print("word " * 100)
    assert capsys.readouterr().out.split("\n")[1:] == ["word " * 100, ""]


def test_each_finished_round_is_one_line() -> None:
    target = console()
    with progress(target) as shown:
        faulty = {"refused": 3, "failed": 1, "aggregated": False, "round": 10}
        for values in ({}, {"server_snn_accuracy": None, "train_loss": None}, faulty):
            shown.round_done(row(**values))
    lines = written(target).strip().splitlines()
    assert [line.rstrip() for line in lines] == [
        "S-FedAvg round  2/10  server SNN 91.25 %  server ANN 50.00 %  loss 0.250  1.3 s",
        "S-FedAvg round  2/10  server ANN 50.00 %  1.3 s",
        "S-FedAvg round 10/10  server SNN 91.25 %  server ANN 50.00 %  loss 0.250  3 refused, 1 failed  "
        "old weights kept  1.3 s",
    ]


@pytest.mark.parametrize(("fraction", "selected"), [(1.0, 20), (0.5, 10), (0.13, 2), (0.01, 1)])
def test_the_bar_has_as_many_steps_as_clients_are_selected(fraction: float, selected: int) -> None:
    with progress(console(terminal=True), f"strategy.fraction_train={fraction}") as shown:
        [task] = shown.progress.tasks
        assert (task.total, task.completed, task.description) == (selected, 0, "round 1/10")
        shown.client_done()
        assert task.completed == 1
        shown.round_done(row(round=1))
        assert (task.total, task.completed, task.description) == (selected, 0, "round 2/10")
        shown.round_done(row(round=10))
        assert task.description == "round 10/10"


def test_a_resumed_run_begins_with_a_round_that_is_not_known_yet() -> None:
    with progress(console(terminal=True), "run.resume=true") as shown:
        [task] = shown.progress.tasks
        assert (task.total, task.completed, task.description) == (20, 0, "resuming")
        shown.round_done(row(round=7))
        assert task.description == "round 8/10"


def test_training_a_client_advances_the_bar_and_nothing_else_does() -> None:
    replies: list[Message] = []

    class App(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            replies.append(Message(RecordDict(), reply_to=message))
            return replies[-1]

    with restored_task_identity(), progress(console(terminal=True)) as shown:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        watched = WatchedClientApp(App(), shown)
        context = Context(1, 2, {}, RecordDict(), {})
        done = []
        for kind in ("query", "train", "evaluate", "train"):
            assert watched(Message(RecordDict(), 2, kind), context) is replies[-1]
            done.append(shown.progress.tasks[0].completed)
    assert done == [0, 1, 1, 2]


def test_an_error_ends_the_drawing() -> None:
    shown = progress(console(terminal=True))

    def fail() -> None:
        with shown:
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert not shown.progress.live.is_started


def test_without_a_server_model_the_clients_are_shown() -> None:
    target = console()
    with progress(target, "strategy.name=solo") as shown:
        shown.round_done(row(server_snn_accuracy=None, server_ann_accuracy=None))
        shown.round_done(row(server_snn_accuracy=None, server_ann_accuracy=None, client_ann_accuracy_mean=None))
    lines = [line.rstrip() for line in written(target).strip().splitlines()]
    assert lines == [
        "S-SOLO round  2/10  clients' ANN 75.00 %  loss 0.250  1.3 s",
        "S-SOLO round  2/10  server –  loss 0.250  1.3 s",
    ]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "S-FedAvg"),
        (["strategy.spiking=false"], "FedAvg"),
        (["strategy.name=fedprox"], "S-FedProx"),
        (["strategy.name=moon"], "S-MOON"),
        (["strategy.name=solo", "strategy.spiking=false"], "SOLO"),
        (["strategy.spiking=false", "model.neuron=alif", "strategy.name=moon"], "MOON (ALIF)"),
        (["strategy.name=fedavgm", "privacy.mechanism=local"], "S-DP-FedAvgM"),
    ],
)
def test_algorithms_are_called_as_in_the_papers(overrides: list[str], name: str) -> None:
    assert algorithm(compose(None, overrides)) == name


def test_percentages() -> None:
    assert [percent(value) for value in (0.0, 0.12345, 1.0, None)] == ["0.00 %", "12.35 %", "100.00 %", "–"]


def test_the_table_holds_the_last_rounds_side_by_side() -> None:
    config = compose(None, ["run.rounds=2"])
    plain = compose(None, ["run.rounds=2", "strategy.spiking=false"])
    runs = [
        (config, [row(round=1, seconds_round=9.6), row()]),
        (plain, [row(server_snn_accuracy=None, client_ann_accuracy_mean=None, client_ann_accuracy_std=None)]),
    ]
    target = console()
    target.print(results_table(runs))
    text = written(target)
    assert "digits, 10 clients, 2 rounds" in text
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert cells == [
        ["S-FedAvg", "91.25 %", "50.00 %", "75.00 % ± 3.12", "2.34", "11"],
        ["FedAvg", "–", "50.00 %", "–", "2.34", "1"],
    ]


def test_a_spiking_network_of_its_own_has_columns_for_what_it_is() -> None:
    native = compose(None, ["run.rounds=2", "strategy.spiking=false", "model.neuron=lif"])
    none = {"server_ann_accuracy": None, "client_ann_accuracy_mean": None, "client_ann_accuracy_std": None}
    last = row(**none, client_snn_accuracy_mean=0.75, client_snn_accuracy_std=0.0312)
    target = console()
    target.print(results_table([(native, [last])]))
    head, cells = (
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in written(target).splitlines()
        if "│" in line or "┃" in line
    )
    assert head == ["", "server SNN", "clients' SNN", "MB up", "seconds"]
    assert cells == ["FedAvg (LIF)", "91.25 %", "75.00 % ± 3.12", "2.34", "1"]


def test_the_table_says_what_an_attack_has_achieved_and_which_rounds_there_are() -> None:
    attacked = compose(None, ["run.rounds=1", "poisoning.attack=badnets"])
    last = row(attack_success_snn=0.2469, attack_success_ann=0.2)
    plain = row(attack_success_snn=None, attack_success_ann=1.0)
    spared = row(attack_success_snn=None, attack_success_ann=None)
    native = compose(None, ["model.neuron=lif", "strategy.spiking=false", "poisoning.attack=badnets"])
    trained = row(attack_success_snn=0.5, attack_success_ann=None)
    runs = [(attacked, [row(round=1), last]), (attacked, [plain]), (attacked, [spared]), (native, [trained])]
    target = console()
    target.print(results_table(runs))
    lines = [line.strip() for line in written(target).splitlines()]
    assert lines[0] == "digits, 10 clients, 2 rounds", "it has more than were asked for"
    said = "S-FedAvg: success of badnets"
    of_lif = "FedAvg (LIF): success of badnets 50.00 % (SNN)"
    assert lines[-3:] == [f"{said} 24.69 % (SNN), 20.00 % (ANN)", f"{said} 100.00 % (ANN)", of_lif]


def test_clients_that_train_alone_keep_no_old_weights() -> None:
    target = console()
    with progress(target, "strategy.name=solo") as shown:
        shown.round_done(row(aggregated=False, server_snn_accuracy=None, server_ann_accuracy=None))
    assert "clients' ANN 75.00 %" in written(target)
    assert "old weights" not in written(target)
