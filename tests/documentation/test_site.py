"""The site of the documentation: every page, without a broken link, asking no other host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Fetched(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.urls.append(values.get("src") or "")
        if tag == "link" and values.get("rel") != "canonical":
            self.urls.append(values.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.mark.slow
def test_the_site_has_no_broken_link_and_fetches_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert [url for url in parser.urls if re.match(r"(https?:)?//", url)] == [], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text(encoding="utf-8")), style.name


@pytest.mark.slow
def test_a_link_whose_text_is_code_is_one_though_more_code_follows(site: Path) -> None:
    page = (site / "provable-privacy.html").read_text(encoding="utf-8")
    assert re.search(r'<a href="audit.html#sums"><code>snnfl audit</code>', page)


def browsed(page: str, *options: str) -> str:
    """Return a page as a browser shows it, 1300 pixels wide."""
    if shutil.which("chromium") is None:
        pytest.skip("no chromium here: apt-get install chromium")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,900"]
    done = subprocess.run(
        [*command, *options, "--dump-dom", page], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_the_search_works_from_the_file_system(site: Path) -> None:
    shown = browsed(f"{(site / 'index.html').as_uri()}?q=honest-but-curious", "--virtual-time-budget=20000")
    (said,) = re.findall(r'class="md-search-result__meta"[^>]*>\s*(.*?)\s*<', shown)
    assert re.fullmatch(r"\d+ matching documents", said), said


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index", "audit", "audit-measured", "quickstart", "how-to/audit-your-flower-app"])
def test_code_and_pages_are_not_wider_than_the_window(site: Path, page: str) -> None:
    script = """<script>addEventListener("load", () => {
      const wide = [...document.querySelectorAll("pre > code")].filter(code => code.scrollWidth > code.clientWidth + 1);
      document.title = `wide: ${document.documentElement.scrollWidth > 1300} ${wide.length}`; });</script>"""
    path = site / f"{page}.html"
    copy = path.with_name(f"{path.stem}-probed.html")
    copy.write_text(path.read_text(encoding="utf-8").replace("</head>", f"{script}</head>", 1), encoding="utf-8")
    shown = browsed(copy.as_uri())
    copy.unlink()
    assert "<title>wide: false 0</title>" in shown


@pytest.mark.slow
def test_the_site_holds_every_option_module_and_study(site: Path) -> None:
    from snnfl.config import flatten
    from snnfl.config.options import Config

    configuration = (site / "configuration.html").read_text(encoding="utf-8")
    for key in flatten(Config()):
        assert f"<code>{key.partition('.')[2]}</code>" in configuration
    modules = [
        path.relative_to(ROOT) for name in ("snnfl", "clients", "strategies") for path in (ROOT / name).rglob("*.py")
    ]
    for module in modules:
        name = "index" if module.stem == "__init__" else module.stem
        assert (site / "api" / module.parent / f"{name}.html").exists()
    for study in (ROOT / "experiments").glob("*/*/README.md"):
        assert (site / study.parent.relative_to(ROOT).with_suffix(".html")).exists()
