"""The auditor's command, from a recorded run to a page that a browser shows."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from experiments import cli
from experiments.audit import command
from experiments.audit.choice import CONTROL_ATTACKS, check_names, choose
from snnfl.attacks import names
from snnfl.auditing.suite import applicable
from snnfl.config import ConfigError
from snnfl.membership_attacks.federated import FEDERATED_ATTACKS

SETTING = """
run: {name: NAME, rounds: 2}
data: {clients: 900, minimum_samples: 1}
model: {batch_norm: false}
training: {epochs: 1, batch_size: 2, momentum: 0, weight_decay: 0}
conversion: {steps: 8}
strategy: {fraction_train: 0.00334, spiking: SPIKING}
evaluation: {clients: false, images: 20}
audit: {record: true, ground_truth: true}
"""
ITERATIONS = 6
ATTACKS = ["--attack", "inverting_gradients", "--attack", "reconverted_initial", "--attack", "closed_form"]


def invoke(monkeypatch, capsys, *arguments):
    """Run the command as a person would; return its exit status and what it wrote."""
    monkeypatch.setattr("sys.argv", ["snnfl", *map(str, arguments)])
    try:
        cli.main()
        status = 0
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, spiking in (("s", "true"), ("p", "false")):
        path = folder / f"{name}.yaml"
        path.write_text(SETTING.replace("NAME", name).replace("SPIKING", spiking))
        result = CliRunner().invoke(cli.app, ["run", str(path), f"run.directory={folder}"])
        assert result.exit_code == 0, result.output
    command = ["audit", str(folder / "s"), str(folder / "p"), *ATTACKS, "--iterations", str(ITERATIONS), "--round", "1"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    return folder


def test_the_scorecard_says_everything_of_each_attack(runs):
    entries = json.loads((runs / "s/audit/scorecard.json").read_text())
    attacked = {(entry["run"], entry["attack"]) for entry in entries if "noise_multiplier" not in entry}
    assert attacked == {
        ("s", "closed_form"),
        ("s", "reconverted_initial"),
        ("s, plain twins", "closed_form"),
        ("s, plain twins", "inverting_gradients"),
        ("p", "closed_form"),
        ("p", "inverting_gradients"),
    }
    for entry in entries:
        if entry["attack"] == "closed_form":
            assert entry["verdict"] == "refused"
            assert "isn't linear" in entry["refusal"]
            continue
        assert entry["victims"] == 3
        assert entry["interval"][0] < entry["value"] < entry["interval"][1]
        assert entry["floor"]["name"] in ("grey", "mean_image", "mean_colour")
        assert entry["verdict"] in ("leaks", "unclear", "nothing seen")
        assert "architecture" in entry["threat_model"]["facts"]
        assert entry["threat_model"]["who"] == "honest-but-curious server"
        if "noise_multiplier" not in entry:
            assert (entry["control"] is not None) == (entry["attack"] == "reconverted_initial")
            points = [point["iteration"] for point in entry["curve"]]
            assert points == list(range(ITERATIONS))
            assert entry["curve"][-1]["psnr"]["value"] == pytest.approx(entry["value"])
    rows = list(csv.DictReader((runs / "s/audit/scorecard.csv").read_text().splitlines()))
    assert [row["attack"] for row in rows] == [e["attack"] for e in entries if "noise_multiplier" not in e]
    for run in ("s, plain twins", "p"):
        noise = [entry["noise_multiplier"] for entry in entries if "noise_multiplier" in entry and entry["run"] == run]
        assert noise == sorted(noise)
        assert len(noise) == 4


def test_the_same_numbers_are_files_for_other_programs(runs):
    def rows(name):
        return list(csv.DictReader((runs / "s/audit" / name).read_text().splitlines()))

    entries = json.loads((runs / "s/audit/scorecard.json").read_text())
    entry = next(entry for entry in entries if entry["attack"] == "reconverted_initial")
    curve = [row for row in rows("curves.csv") if (row["run"], row["attack"]) == ("s", "reconverted_initial")]
    assert [float(row["psnr"]) for row in curve] == pytest.approx(
        [p["psnr"]["value"] for p in entry["curve"]], rel=1e-3
    )
    best, plain = rows("best.csv")
    assert (best["run"], best["attack"], best["control"]) == ("s", "reconverted_initial", "inverting_gradients")
    assert float(best["value"]) == pytest.approx(entry["value"], rel=1e-3)
    assert float(best["over_control"]) == pytest.approx(entry["control"]["value"], rel=1e-2)
    assert (plain["run"], plain["over_control"]) == ("p", "")
    biases = rows("biases.csv")
    assert {row["guess"] for row in biases} == {"as received", "zero", "inferred", "initial weights"}
    first = [row for row in biases if row["guess"] == "initial weights"]
    assert {float(row["distance_before_training"]) for row in first} == {0.0}  # all start from the seed's
    assert all(float(row["distance"]) > 0 for row in first)
    noise = [row for row in rows("noise.csv") if row["run"] == "p"]
    assert [float(row["z"]) for row in noise] == [1e-4, 1e-3, 1e-2, 1e-1]
    assert all(row["attack"] == "inverting_gradients" and float(row["psnr"]) > 0 for row in noise)
    thresholds = rows("thresholds.csv")
    assert {row["run"] for row in thresholds} == {"s"}
    assert len({row["layer"] for row in thresholds}) * 3 == len(thresholds)
    assert all(float(row["threshold"]) > 0 and row["attacks"] == "False" for row in thresholds)
    assert {row["detector"] for row in rows("detectors.csv") if row["run"] == "p"} == {
        "norm",
        "cosine",
        "krum",
        "hdbscan",
    }


def test_a_plain_twin_is_attacked_as_its_client_would_have_been(runs):
    """The twins of the first round's clients are the very clients of the plain run."""
    entries = json.loads((runs / "s/audit/scorecard.json").read_text())
    twin, plain = (
        next(e for e in entries if e["attack"] == "inverting_gradients" and e["run"] == run)
        for run in ("s, plain twins", "p")
    )
    assert twin["value"] == pytest.approx(plain["value"], abs=0.3)
    assert twin["victims"] == plain["victims"]


def test_the_report_needs_nothing_else(runs):
    text = (runs / "s/audit/report.html").read_text()
    loaded = re.findall(r'(?:src|href)="([^"#][^"]*)"', text)
    assert loaded
    assert all(target.startswith("data:") for target in loaded)
    assert "<script" not in text
    assert "@import" not in text


PROBE = """
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<script>
const blocked = [];
addEventListener("securitypolicyviolation", event => blocked.push(event.blockedURI));
const box = node => { const area = node.getBoundingClientRect(); return [area.width, area.height]; };
const all = (node, selector) => [...node.querySelectorAll(selector)];
const where = node => node.closest("section").id;
const over = () => all(document, "body *").filter(node => !node.closest("svg") &&
  (node.getBoundingClientRect().right > document.documentElement.clientWidth + 1 ||
   node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0)
).map(node => node.tagName + ": " + node.innerText.slice(0, 40));
const drawn = node => all(node, "path[clip-path], g[clip-path] use").map(box);
addEventListener("load", () => {
  const seen = {
    tables: all(document, "table").map(table => ({
      section: where(table), caption: table.caption?.innerText, box: box(table),
      rows: all(table, "tbody tr").map(row => all(row, "td").map(cell => ({
        text: cell.innerText, box: box(cell),
        images: all(cell, "img").map(img => ({ source: img.src, natural: img.naturalWidth, box: box(img) })),
      }))),
    })),
    figures: all(document, "figure").map(figure => ({
      section: where(figure), caption: figure.querySelector("figcaption").innerText,
      box: box(figure.querySelector("svg")),
      axes: all(figure, "g[id^=axes_]").map(drawn),
    })),
    resources: performance.getEntriesByType("resource").map(entry => entry.name),
    blocked,
    terms: all(document, "dt").map(term => term.innerText),
    heads: all(document, "#verdicts th, #other-numbers th").map(head => head.innerText),
    clipped: over(),
  };
  const result = document.createElement("script");
  result.type = "application/json";
  result.id = "seen";
  result.textContent = JSON.stringify(seen).replaceAll("<", "\\u003c");
  document.body.append(result);
});
</script>
"""
"""Goes into a copy of a page: a policy under which nothing may be loaded, and a script that says what is shown."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Return a function that lets headless Chromium do something with a page, and returns what it printed."""
    if shutil.which("chromium") is None:
        pytest.skip("no chromium here: apt-get install chromium")
    profile = tmp_path_factory.mktemp("profile")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]

    def browse(path: Path, *does: str) -> str:
        return subprocess.run(
            [*command, *does, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
        ).stdout

    return browse


@pytest.fixture(scope="module")
def seen(runs, browser):
    """Return what the browser shows of the report."""
    return probed(runs / "s/audit/report.html", runs / "probed.html", browser, "--window-size=1300,900")


def probed(report, copy, browser, *options):
    """Return what a browser shows of a page."""
    copy.write_text(report.read_text().replace("<head>", "<head>" + PROBE))
    shown = browser(copy, "--hide-scrollbars", *options, "--dump-dom")
    return json.loads(re.search(r'<script type="application/json" id="seen">(.*?)</script>', shown, re.S)[1])


def scored(runs):
    """Return the scorecard's attacks that were carried out."""
    entries = json.loads((runs / "s/audit/scorecard.json").read_text())
    return [e for e in entries if e["refusal"] is None and "noise_multiplier" not in e]


def visible(*boxes):
    return bool(boxes) and all(width > 0 and height > 0 for width, height in boxes)


def tables_of(seen, section):
    return [table for table in seen["tables"] if table["section"] == section]


def figures_of(seen, section):
    return [figure for figure in seen["figures"] if figure["section"] == section]


def texts(table):
    return [[cell["text"] for cell in row] for row in table["rows"]]


def test_a_browser_loads_nothing_beside_the_report(seen):
    assert seen["blocked"] == []
    assert [name for name in seen["resources"] if not name.startswith("data:")] == []


def test_a_browser_shows_three_sentences_and_what_was_found(runs, seen):
    text = (runs / "s/audit/report.html").read_text()
    assert re.findall(r"<li><strong>(.*?)</strong>", text) == ["What leaked.", "To whom.", "How sure."] * 2
    own, plain = tables_of(seen, "what-leaked")
    of_plain, of_spiking = "best from the plain update (inverting_gradients)", "best from the S-update"
    assert [row[0] for row in texts(own)][:3] == ["original", of_plain, f"{of_spiking} (reconverted_initial)"]
    assert [row[0] for row in texts(plain)][:2] == ["original", of_plain]
    for figure in (own, plain):
        assert texts(figure)[-1][0].startswith("best guess without an update (")
        rows = [[pixels(cell["images"][0]["source"]) for cell in row[1:]] for row in figure["rows"]]
        assert len(rows[0]) == 3
        assert all((first != other).any() for row in rows[1:] for first, other in zip(rows[0], row, strict=True))


def test_a_browser_shows_the_verdicts(runs, seen):
    own, plain, refused, best = tables_of(seen, "verdicts")
    entries = scored(runs)
    for table, run in ((own, "s"), (plain, "p")):
        assert visible(table["box"], *(cell["box"] for row in table["rows"] for cell in row))
        guess, *shown = texts(table)
        of_run = [e for e in entries if e["run"].partition(",")[0] == run]
        assert guess[:4] == ["best guess", "3", "–", f"{of_run[0]['floor']['psnr']:.1f}"]
        assert [row[0] for row in shown] == [e["attack"] + (" (plain twin)" if e["run"] != run else "") for e in of_run]
        for row, entry in zip(shown, of_run, strict=True):
            because = f": {entry['reason']}" if entry["verdict"] != "nothing seen" else ""
            assert row[2:4] == [
                entry["verdict"] + because,
                "{:.1f} ({:.1f}\xa0to\xa0{:.1f})".format(entry["value"], *entry["interval"]),
            ]
    assert len(texts(own)[1]) == 8
    assert len(texts(plain)[1]) == 7  # over no plain twin
    assert [row[1:3] for row in texts(refused)] == [["closed_form", "refused"]] * 3
    assert [row[2] for row in texts(best)] == ["reconverted_initial (of 1)", "inverting_gradients (of 1)"]


def test_every_word_of_the_tables_has_its_sentence(seen):
    explained = {word for term in seen["terms"] for word in (term, *term.split(", "))}
    plain = {"attack", "clients", "verdict", "run", "round", "why", "where", "", "best attack", "over it"}
    assert {"leaks", "unclear", "nothing seen", "IIP", "plain twin"} <= explained
    for head in {*seen["heads"]} - plain:
        word = head.removeprefix("best on ").removesuffix(" in dB").removesuffix("s") if "plain twin" in head else head
        assert word in explained or re.search("≥", head), head


@pytest.mark.parametrize(("width", "printed"), [(1300, False), (718, True)])  # A4 without the margins
def test_nothing_of_the_report_is_clipped(runs, browser, tmp_path, width, printed):
    report = tmp_path / "report.html"
    text = (runs / "s/audit/report.html").read_text()
    report.write_text(text.replace("@media print", "@media all") if printed else text)
    found = probed(report, tmp_path / "probed.html", browser, f"--window-size={width},900")
    assert found["clipped"] == []


def test_what_is_too_wide_is_noticed(runs, browser, tmp_path):
    report = tmp_path / "report.html"
    wide = '<table style="width: 1400px"><tr><td>wide</td></tr></table></body>'
    report.write_text((runs / "s/audit/report.html").read_text().replace("</body>", f"<section>{wide}</section>"))
    found = probed(report, tmp_path / "probed.html", browser, "--window-size=1300,900")
    assert any("wide" in clipped for clipped in found["clipped"])


def test_a_browser_shows_reconstructions_beside_the_originals(runs, seen):
    grids = [table for name in ("s", "p") for table in tables_of(seen, f"reconstructions-{name}")]
    assert len(grids) == 2
    tried = (["reconverted_initial", "inverting_gradients (plain twin)"], ["inverting_gradients"])
    for grid, names_of_rows in zip(grids, tried, strict=True):
        assert [row[0] for row in texts(grid)] == ["original", *names_of_rows]
        first, *others = grid["rows"]
        for row in grid["rows"]:
            images = [image for cell in row[1:] for image in cell["images"]]
            assert len(images) == 3
            assert {image["natural"] for image in images} == {8}  # decoded: digits have 8x8 pixels
            assert {tuple(image["box"]) for image in images} == {(96, 96)}
        originals = [pixels(cell["images"][0]["source"]) for cell in first[1:]]
        assert all(image.std() > 20 for image in originals)  # digits, not grey
        for row in others:
            for original, cell in zip(originals, row[1:], strict=True):
                assert (pixels(cell["images"][0]["source"]) != original).any()


def pixels(source):
    """Decode a picture that stands in the page itself."""
    kind, _, data = source.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=float)


def test_a_browser_shows_the_figures(runs, seen):
    curves = figures_of(seen, "convergence")
    assert [figure["caption"].partition(":")[0] for figure in curves] == ["s", "p"]
    for figure, name in zip(curves, ("s", "p"), strict=True):
        own = [entry for entry in scored(runs) if entry["run"].partition(",")[0] == name]
        objective, psnr = figure["axes"]
        assert (len(objective), len(psnr)) == (len(own), len(own) + 2)  # and the floor, and success
        assert all(width > 0 for width, _ in objective + psnr)
    guesses = {row[0] for row in texts(tables_of(seen, "private-biases")[0])}
    assert guesses == {"as received", "zero", "inferred", "initial weights"}
    assert figures_of(seen, "private-biases") == []  # of one round the table says it all
    assert visible(*(figure["box"] for figure in seen["figures"]))


def test_detectors_are_silent_where_nobody_poisons_and_nobody_asked(runs):
    text = (runs / "s/audit/report.html").read_text()
    assert "flagged clients" not in text
    assert "Detectors of poisoned clients" not in text


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("poisoned")
    path = folder / "q.yaml"
    path.write_text(SETTING.replace("NAME", "q").replace("SPIKING", "true"))
    options = ["poisoning.attack=label_flip", "poisoning.attackers=450", "run.rounds=1", f"run.directory={folder}"]
    assert CliRunner().invoke(cli.app, ["run", str(path), *options]).exit_code == 0
    result = CliRunner().invoke(cli.app, ["audit", str(folder / "q"), "--attack", "closed_form", "--no-controls"])
    assert "no attack ran: each was refused" in str(result.exception), result.output
    return folder / "q/audit"


def test_a_browser_shows_what_detectors_said_of_poisoners(poisoned, browser, tmp_path):
    found = probed(poisoned / "report.html", tmp_path / "probed.html", browser, "--window-size=1300,900")
    (table,) = tables_of(found, "detectors-of-poisoned-clients")
    rows = list(csv.DictReader((poisoned / "detectors.csv").read_text().splitlines()))
    assert [row[1] for row in texts(table)] == list(dict.fromkeys(row["detector"] for row in rows))
    guilty = {row["partition"] for row in rows if row["attacks"] == "True"}
    for _, _, flagged, caught, alarms in texts(table):
        named = {*flagged.split(", ")} - {"–"}
        assert caught == (f"{len(named & guilty)} of {len(guilty)}" if guilty else "–")
        assert alarms == f"{len(named - guilty)} of {3 - len(guilty)}"
    (thresholds,) = figures_of(found, "detectors-of-poisoned-clients")
    assert "distances" in thresholds["caption"]
    scatter, bars = thresholds["axes"]
    assert visible(*scatter, *bars)
    assert (len(scatter), len(bars)) == (3, 3)  # one of each client


def test_a_browser_prints_the_report(runs, browser, tmp_path):
    path = tmp_path / "report.pdf"
    browser(runs / "s/audit/report.html", f"--print-to-pdf={path}", "--no-pdf-header-footer")
    data = path.read_bytes()
    assert data.startswith(b"%PDF-")
    assert len(data) > 50_000
    assert len(re.findall(rb"/Type /Page\b", data)) >= 4
    printed = printed_texts(data)
    wanted = ["Whatleaked", "Verdicts", "overplaintwinindB", "Wordsandsymbols"]
    wanted += [e["attack"] for e in scored(runs)]
    wanted += ["{:.1f}({:.1f}to{:.1f})".format(e["value"], *e["interval"]) for e in scored(runs)]
    assert [each for each in wanted if not any(each in text for text in printed)] == []


def printed_texts(data):
    """Return what a PDF prints, without spaces, as each of its fonts would read it.

    Chromium writes glyph numbers in hexadecimal, and for each font a table from glyphs to characters.
    """
    streams = []
    for found in re.finditer(rb"stream\r?\n", data):
        with contextlib.suppress(zlib.error):
            streams.append(zlib.decompressobj().decompress(data[found.end() :]).decode("latin-1"))
    glyphs = "".join(re.findall(r"<([0-9A-Fa-f]+)>", "".join(s for s in streams if "Tj" in s or "TJ" in s)))
    codes = [glyphs[start : start + 4].upper() for start in range(0, len(glyphs), 4)]
    return ["".join(font.get(code, "") for code in codes) for font in map(characters, streams) if font]


def characters(stream):
    """Read a font's table, whose lines are ``<glyph> <character>`` or ``<first glyph> <last> <first's character>``."""
    table = {}
    for block in re.findall(r"beginbfchar(.*?)endbfchar", stream, re.S):
        table |= {code.upper(): text(value) for code, value in re.findall(r"<(\w+)> <(\w+)>", block)}
    for block in re.findall(r"beginbfrange(.*?)endbfrange", stream, re.S):
        for first, last, value in re.findall(r"<(\w+)> <(\w+)> <(\w+)>", block):
            for offset in range(int(last, 16) - int(first, 16) + 1):
                table[f"{int(first, 16) + offset:04X}"] = chr(int(value, 16) + offset).strip()
    return table


def text(value):
    """Decode a character, or several of a ligature."""
    return bytes.fromhex(value).decode("utf-16-be").strip()


def test_a_damaged_recording_is_one_line_that_names_the_file(runs, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "damaged"
    shutil.copytree(runs / "p", copy)
    path = next((copy / "audit/recording").rglob("received.safetensors"))
    path.write_bytes(path.read_bytes()[:-3])
    status, said = invoke(monkeypatch, capsys, "audit", copy)
    assert status == 2
    assert str(path) in said.replace("\n", "")
    assert "Traceback" not in said


def test_the_folder_of_a_recording_leads_to_its_run(runs, monkeypatch, capsys):
    status, said = invoke(monkeypatch, capsys, "audit", runs / "p/audit")
    assert status == 2
    assert said.replace("\n", "").endswith(f"give the folder of the run: {runs / 'p'}")


def test_below_a_table_each_reason_names_its_attacks():
    rows = [("a", "a: no images"), ("b", "b: no images"), ("c", "c: no biases"), ("c", "c: no biases")]
    entries = [
        {
            "run": "r",
            "round": 1,
            "kind": "images",
            "attack": attack,
            "verdict": "refused",
            "refusal": why,
            "value": None,
        }
        for attack, why in rows
    ]
    (table,) = command._tables(entries)
    assert table.caption == "a, b: no images\nc: no biases"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--deny", "learning_rat"], ["learning_rat", "did you mean 'learning_rate'"]),
        (["--attack", "dgl"], ["'dgl'", "did you mean 'dlg'"]),
        (["--attack", "round_los"], ["'round_los'", "did you mean 'round_loss'"]),
        (["--attack", "q"], ["known: ", "closed_form", "fedmia_loss", "round_loss"]),
        (["--round", "7"], ["round 7 is not recorded, only [1, 2]"]),
        (["--round", "1", "--round", "99"], ["round 99 is not recorded, only [1, 2]"]),
        (["--round", "1", "--client", "FIRST", "--client", "999"], ["client 999 is not recorded", "only [ALL]"]),
        (["--client", "999"], ["client 999 is not recorded"]),
        (["--attack", "reconverted_train"], ["reconverted_train: nothing to attack"]),
    ],
)
def test_a_mistake_is_one_line_before_any_attack(runs, monkeypatch, capsys, arguments, parts):
    monkeypatch.setattr(command, "attack_all", None)
    recorded = sorted(int(path.name[10:]) for path in (runs / "p/audit/recording/round-000001").glob("partition-*"))
    first, every = str(recorded[0]), str(recorded)[1:-1]
    status, said = invoke(monkeypatch, capsys, "audit", runs / "p", *(a.replace("FIRST", first) for a in arguments))
    assert status == 2
    assert all(part.replace("ALL", every) in said for part in parts)
    assert "only []" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("metrics.jsonl", None, "cannot be read (No such file"),
        ("metrics.jsonl", '{"round": 1}\n{"rou', "damaged"),
        ("metrics.jsonl", "[1]", "isn't the row of a round"),
        ("environment.json", "garbage", "damaged"),
        ("environment.json", "[]", "expected an object"),
    ],
)
def test_a_damaged_run_is_one_line_before_any_attack(runs, tmp_path, monkeypatch, capsys, file, content, words):
    copy = tmp_path / "damaged"
    shutil.copytree(runs / "p", copy)
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content)
    monkeypatch.setattr(command, "attack_all", None)
    status, said = invoke(monkeypatch, capsys, "audit", runs / "s", copy)  # the second of two
    assert status == 2
    assert f"{copy / file}: " in said.replace("\n", "")
    assert words in said
    assert "Traceback" not in said


def test_a_named_attack_is_the_only_one_and_a_line_says_where_it_does_not_apply(runs, tmp_path, monkeypatch, capsys):
    options = ["--iterations", "1", "--round", "1", "--output", tmp_path / "out"]
    status, said = invoke(monkeypatch, capsys, "audit", runs / "s", runs / "p", "--attack", "idlg", *options)
    assert status == 0, said
    assert (
        "s: idlg attacks native and plain updates, those of this run are converted ones; it attacks the plain twins"
        in " ".join(said.split())
    )
    entries = json.loads((tmp_path / "out/scorecard.json").read_text())
    attacked = {(entry["run"], entry["attack"]) for entry in entries if "noise_multiplier" not in entry}
    assert attacked == {("s, plain twins", "idlg"), ("p", "idlg")}
    both = [runs / "s", runs / "p", "--attack", "snn_naive", "--no-controls"]
    status, said = invoke(monkeypatch, capsys, "audit", *both, *options)
    assert status == 0, said
    assert "p: snn_naive attacks converted updates, those of this run are plain ones" in " ".join(said.split())
    entries = json.loads((tmp_path / "out/scorecard.json").read_text())
    assert {(entry["run"], entry["attack"]) for entry in entries} == {("s", "snn_naive")}


@pytest.mark.parametrize(
    ("named", "on_run", "on_twins"),
    [
        (["closed_form", "reconverted_train"], ["closed_form", "reconverted_train"], CONTROL_ATTACKS),
        (["dlg", "closed_form"], ["closed_form"], ["dlg", "closed_form"]),
        (["snn_naive"], ["snn_naive"], CONTROL_ATTACKS),
        ([], None, CONTROL_ATTACKS),
    ],
)
def test_twins_keep_their_controls_unless_plain_attacks_are_named(named, on_run, on_twins):
    choice = choose(named, "converted")
    assert list(choice.on_twins) == list(on_twins)
    assert list(choice.on_run) == list(applicable("converted") if on_run is None else on_run)
    assert not choose(["snn_naive"], "plain").some


def test_attacks_that_ask_for_members_are_named_like_others():
    asked = choose(["round_loss", "spiking_loss"], "plain")
    assert (list(asked.members), list(asked.on_run), list(asked.on_twins)) == (["round_loss"], [], [])
    assert asked.left == {"spiking_loss": "attacks converted updates, those of this run are plain ones"}
    assert asked.named
    assert not choose([], "plain").named
    assert list(choose(["round_loss"], "converted").on_twins) == []
    assert not choose(["closed_form"], "plain").members
    assert {"round_loss", "fedmia_loss"} <= {*choose([], "plain").members}
    check_names(["round_loss", "closed_form"])
    with pytest.raises(ConfigError, match="did you mean 'closed_form'"):
        check_names(["closed_from"])


def test_what_attacks_updates_of_either_kind_attacks_the_twins_too():
    both = {name for name in applicable("converted") if name in applicable("plain")}
    assert both - {*CONTROL_ATTACKS} == {"joint_rounds"}


def test_denied_facts_refuse_one_attack_and_leave_the_others(runs, tmp_path, monkeypatch, capsys):
    """Several local steps: what simulates them needs the optimizer, what takes them as one doesn't."""
    copy = tmp_path / "p"
    shutil.copytree(runs / "p", copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("epochs: 1", "epochs: 2"))
    options = ["--iterations", "1", "--round", "1", "--no-controls"]
    for fact in ("optimizer", "learning_rate"):
        both = ["--attack", "inverting_gradients", "--attack", "huang", "--deny", fact]
        status, said = invoke(monkeypatch, capsys, "audit", copy, *both, *options)
        assert status == 0, said
        refused, found = json.loads((copy / "audit/scorecard.json").read_text())
        assert f"needs {fact}, which the threat model denies" in refused["refusal"]
        assert (found["attack"], found["victims"], found["refusal"]) == ("huang", 3, None)
    status, said = invoke(
        monkeypatch, capsys, "audit", copy, "--attack", "huang", "--labels", "--deny", "images", *options
    )
    assert status == 0, said
    (found,) = json.loads((copy / "audit/scorecard.json").read_text())
    assert (found["setting"], found["metrics"]["label_accuracy"]["value"]) == ("diagnostic", 1.0)


def test_an_audit_that_is_refused_altogether_ends_so_and_keeps_the_earlier_report(runs, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    options = ["--attack", "closed_form", "--no-controls", "--round", "1", "--output", folder]
    refused = ["audit", runs / "p", *options, "--deny", "architecture"]
    status, said = invoke(monkeypatch, capsys, *refused)
    assert (status, said.count("no attack ran: each was refused")) == (3, 1)
    assert "needs architecture, which the threat model denies" in (folder / "report.html").read_text(), "a first one"
    named = ["--attack", "inverting_gradients", "--iterations", "1"]
    status, said = invoke(monkeypatch, capsys, "audit", runs / "p", *options, *named)
    assert status == 0, said
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, said = invoke(monkeypatch, capsys, *refused)
    assert status == 3
    assert "report.html stays the earlier one, for every attack was refused" in " ".join(said.split())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    members = ["audit", runs / "p", "--attack", "round_loss", "--no-controls", "--round", "1", "--output", folder]
    status, said = invoke(monkeypatch, capsys, *members, "--deny", "architecture")
    assert status == 3, said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_list_says_of_each_attack_what_it_does_and_needs(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    status, said = invoke(monkeypatch, capsys, "audit", "--list")
    assert status == 0, said
    assert all(name in said for name in [*names(), *FEDERATED_ATTACKS.names()])
    assert "Minimise 1 - cos(g', g) + a TV(x')" in said
    assert "converted" in said
    assert "update_statistics" in said


@pytest.mark.parametrize("columns", [80, 100])
def test_the_list_fits_a_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, said = invoke(monkeypatch, capsys, "audit", "--list")
    assert status == 0, said
    assert max(map(len, said.splitlines())) <= columns
    assert all(name in said for name in [*names(), *FEDERATED_ATTACKS.names()])  # none is torn apart


@pytest.mark.parametrize("command", ["audit", "membership", "privatesnn attack"])
def test_a_list_in_a_file_has_no_more_than_a_hundred_columns(monkeypatch, capsys, command):
    monkeypatch.delenv("COLUMNS", raising=False)
    status, said = invoke(monkeypatch, capsys, *command.split(), "--list")
    assert status == 0, said
    assert max(map(len, said.splitlines())) <= 100


def test_an_audit_of_nothing_says_what_to_give(monkeypatch, capsys):
    status, said = invoke(monkeypatch, capsys, "audit")
    assert status == 2
    assert "give the folder of a run, or --list" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "the run kept no recording of its updates; repeat it with one: snnfl run"),
        (["strategy.name=solo"], "in a SOLO run no weight leaves a client, so there is nothing to attack"),
    ],
)
def test_a_run_that_cannot_be_audited_says_why_in_one_line(tmp_path, monkeypatch, capsys, options, words):
    chosen = ["run.rounds=1", "data.clients=2", "training.epochs=1", "strategy.fraction_train=1.0", *options]
    config = Path(__file__).parents[2] / "experiments/conf/demo.yaml"
    command = ["run", config, f"run.directory={tmp_path}", "run.name=quiet", "strategy.spiking=false", *chosen]
    status, said = invoke(monkeypatch, capsys, *command)
    assert status == 0, said
    status, said = invoke(monkeypatch, capsys, "audit", tmp_path / "quiet")
    assert status == 2
    assert words in " ".join(said.split())
    assert f"{tmp_path / 'quiet'}: " in said.replace("\n", "")
    assert "Traceback" not in said


def test_thresholds_that_nobody_sends_are_not_asked(runs, monkeypatch, capsys):
    status, said = invoke(monkeypatch, capsys, "audit", runs / "p", "--side-channel")
    assert status == 2
    assert said == "snnfl: --side-channel: asks thresholds of S-updates, and no client here sends any; leave it out\n"


def test_compiling_without_a_compiler_is_one_line(runs, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    status, said = invoke(monkeypatch, capsys, "audit", runs / "p", "--compile")
    assert status == 2
    assert "--compile: /no/such/compiler isn't here" in said


def test_a_folder_without_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    status, said = invoke(monkeypatch, capsys, "audit", tmp_path)
    assert status == 2
    assert "give the folder of a run" in said


def example(page: str = "docs/audit.md") -> str:
    """Return the plug-in that a page shows."""
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    return textwrap.dedent(re.search(r"```python[^\n]*\n(.*?)```", text, re.S)[1])


@pytest.mark.usefixtures("own_registries")
def test_the_documented_plugin_is_an_attack_as_any_other(runs, tmp_path, monkeypatch, capsys):
    path = tmp_path / "inverting_l2.py"
    path.write_text(example())
    command = ["audit", runs / "p", "--plugin", path, "--attack", "inverting_l2", "--iterations", "3", "--no-controls"]
    command += ["--round", "1"]
    status, said = invoke(monkeypatch, capsys, *command, "--output", tmp_path / "out")
    assert status == 0, said
    (entry,) = json.loads((tmp_path / "out/scorecard.json").read_text())
    assert (entry["attack"], entry["victims"], entry["refusal"]) == ("inverting_l2", 3, None)
    denied = [*command, "--deny", "loss", "--output", tmp_path / "denied"]
    status, said = invoke(monkeypatch, capsys, *(a for a in denied if a not in ("--plugin", path)))
    (entry,) = json.loads((tmp_path / "denied/scorecard.json").read_text())
    assert entry["refusal"] == "inverting_l2: needs loss, which the threat model denies"


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("page", ["docs/audit.md", "docs/how-to/own-attack.md"])
def test_a_documented_attack_is_refused_without_biases(runs, tmp_path, monkeypatch, capsys, page):
    path = tmp_path / "own.py"
    path.write_text(example(page))
    name = re.search(r'@register\(\s*"(\w+)"', example(page))[1]
    command = ["audit", runs / "p", "--plugin", path, "--attack", name, "--iterations", "1", "--no-controls"]
    command += ["--round", "1", "--deny", "biases", "--output", tmp_path / "out"]
    status, said = invoke(monkeypatch, capsys, *command)
    assert status == 3, said
    assert "needs biases, which the threat model denies" in " ".join(said.split()), "the terminal says why"
    (entry,) = json.loads((tmp_path / "out/scorecard.json").read_text())
    assert entry["refusal"] == f"{name}: needs biases, which the threat model denies"


@pytest.mark.usefixtures("own_registries")
def test_an_attack_that_fails_is_a_row_beside_what_the_others_found(runs, tmp_path, monkeypatch, capsys):
    path = tmp_path / "broken.py"
    path.write_text(
        "from snnfl.attacks import register\n\n"
        "@register('broken', source='here', needs=(), against='plain')\n"
        "def broken(views, budget, generator):\n    return None\n"
    )
    command = ["audit", runs / "p", "--plugin", path, "--attack", "broken", "--attack", "inverting_gradients"]
    command += ["--iterations", "1", "--no-controls", "--round", "1", "--output", tmp_path / "out"]
    _, said = invoke(monkeypatch, capsys, *command)
    assert "Traceback" not in said
    broken, other = json.loads((tmp_path / "out/scorecard.json").read_text())
    reason = "broken: expected a list of 1 reconstructions, one per view, found NoneType"
    assert (broken["attack"], broken["verdict"], broken["refusal"]) == ("broken", "failed", reason)
    assert (other["attack"], other["victims"]) == ("inverting_gradients", 3)
    assert f"p, round 1: failed: {reason}" in " ".join(said.split())
    assert reason.removeprefix("broken: ") in (tmp_path / "out/report.html").read_text()
    rows = list(csv.DictReader((tmp_path / "out/scorecard.csv").read_text().splitlines()))
    assert rows[0]["verdict"] == "failed"


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("x = 1", "it registers nothing"),
        ("x = 1\n1 / 0", "mine.py, line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_a_plugin_that_is_none_is_one_line(tmp_path, monkeypatch, capsys, source, words):
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    status, said = invoke(monkeypatch, capsys, "audit", tmp_path, "--plugin", path)
    assert status == 2
    assert words in said
    assert "Traceback" not in said


def test_the_bar_names_the_attack_that_is_running():
    shown = io.StringIO()
    with command.attack_progress(Console(file=shown, force_terminal=True, width=200)) as progress:
        task = progress.add_task("r", total=1, doing="")
        progress.update(task, doing="closed_form, round 3")
        progress.refresh()
    assert "closed_form, round 3" in shown.getvalue()
