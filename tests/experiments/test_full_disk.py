"""A disk that is full, or refuses: one line with the file, what is kept and how to go on; then it goes on."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import in_this_process

from snnfl.checksummed import round_files
from strategies.run_directory import ANN_FILE, CHECKPOINTS, METRICS_FILE, SNN_FILE, read_metrics

OPTIONS = [
    "data.clients=2",
    "model.name=mlp",
    "data.training_images=120",
    "training.epochs=1",
    "conversion.steps=4",
    "conversion.calibration_images=16",
    "evaluation.images=50",
    "run.rounds=3",
]


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def run(*arguments: str) -> int:
    return in_this_process("run", "empty.yaml", *OPTIONS, *arguments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "empty.yaml").write_text("{}\n")
    assert in_this_process("run", str(folder / "empty.yaml"), *OPTIONS, f"run.directory={folder}") == 0
    return folder / "run"


def rows(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in read_metrics(path)]


def assert_same(run: Path, expected: Path) -> None:
    assert rows(run) == rows(expected)
    for name in (ANN_FILE, SNN_FILE):
        assert (run / name).read_bytes() == (expected / name).read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Returns a folder on a disk of so many KiB; a second call makes the disk larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def resize(kib: int) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={kib}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"mount -t tmpfs fails: {done.stderr.strip()} (needs root)")
        mounted = True
        return folder

    yield resize
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


LINE = re.compile(
    r"snnfl: (?P<file>/\S+): No space left on device; "
    r"(?:(?P<complete>\d) of 3 rounds in \S+ are complete|no round in \S+ is complete); "
    r"the same command with --resume goes on (?:after them|from the start)\n"
)


@pytest.mark.skipif(os.name != "posix", reason="mounts a file system")
@pytest.mark.parametrize("kib", [40, 120, 200, 280, 360])
def test_a_full_disk_is_one_line_and_the_run_goes_on(
    small_disk: Callable[[int], Path], whole: Path, capsys: pytest.CaptureFixture[str], kib: int
) -> None:
    disk = small_disk(kib)
    status = run(f"run.directory={disk}")
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert status == 1, "it doesn't fit"
    line = LINE.fullmatch(error)
    assert line, error
    assert Path(line["file"]).is_relative_to(disk / "run")
    assert int(line["complete"] or 0) == max(round_files(disk / "run" / CHECKPOINTS), default=0)
    small_disk(100_000)
    assert run(f"run.directory={disk}", "--resume") == 0
    if not any(row["faults"] for row in rows(disk / "run")):  # a client may have found the disk full, too
        assert_same(disk / "run", whole)


def test_a_client_that_finds_the_disk_full_fails_with_the_reason(
    small_disk: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk(4)
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "clients").symlink_to(disk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("strategies.run_directory.shutil.rmtree", lambda path: None)  # leave the link
        assert run("run.overwrite=true") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("snnfl: no client sent a valid update in any round: partition 0 failed: OSError: ")
    reason = r"failed: OSError: \[Errno 28\] No space left on device: '[^']*/runs/run/clients/[^']*'"
    assert len(re.findall(rf"reply of partition [01] \(node \d+\) {reason}", captured.out.replace("\n", ""))) == 6


def refusing(patch: pytest.MonkeyPatch, file: Path, code: int) -> None:
    """Let the system refuse to write a file, in its own words, which don't name it."""
    replace, fsync = Path.replace, os.fsync

    def refused(temporary: Path, target: Path) -> Path:
        if target == file:
            raise OSError(code, os.strerror(code))
        return replace(temporary, target)

    def refused_by_handle(handle: int) -> None:
        if os.path.samestat(os.fstat(handle), file.stat() if file.exists() else os.stat_result([0] * 10)):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    patch.setattr(Path, "replace", refused)
    patch.setattr(os, "fsync", refused_by_handle)  # what is appended to is the file itself


REFUSED = {METRICS_FILE: 0, f"{CHECKPOINTS}/round-000002.safetensors": 1, ANN_FILE: 3, SNN_FILE: 3, "accuracy.svg": 3}
CODES = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES]


@pytest.mark.parametrize(("name", "code"), [*zip(REFUSED, CODES, strict=True), (METRICS_FILE, errno.EIO)])
def test_whatever_the_system_says_of_whichever_file_is_one_line(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    folder = tmp_path / "runs" / "run"
    with pytest.MonkeyPatch.context() as patch:
        refusing(patch, folder / name, code)
        assert run() == 1
    kept = f"{REFUSED[name]} of 3 rounds in {folder} are complete" if REFUSED[name] else f"no round in {folder}"
    error = capsys.readouterr().err
    assert error.startswith(f"snnfl: {folder / name}: {os.strerror(code)}; {kept}")
    assert error.count("\n") == 1
    assert run("--resume") == 0
    assert_same(folder, whole)


def test_an_audit_that_cannot_write_its_report_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("audit.record=true", "run.rounds=1", "strategy.spiking=false") == 0
    report = tmp_path / "runs" / "run" / "audit" / "report.html"
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        refusing(patch, Path("runs/run/audit/report.html"), errno.ENOSPC)
        assert in_this_process("audit", "runs/run", "--attack", "closed_form", "--no-controls") == 1
    said = "snnfl: runs/run/audit/report.html: No space left on device; no report is written; what was recorded is as "
    assert capsys.readouterr().err.startswith(said)
    assert not report.exists()
