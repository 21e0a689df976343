"""What is cut off, or lies over something else, in a report that a browser has laid out."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WITHOUT = "no Chromium or Chrome here; apt-get install chromium"

PAPER = 718
"""Width of an A4 page between Chromium's margins, in CSS pixels."""

MEASURE = """
<script>
const flaws = [], wide = document.documentElement.clientWidth;
const name = e => `${e.tagName.toLowerCase()}#${e.id || ''} ${(e.textContent || '').trim().slice(0, 40)}`;
const box = e => e.getBoundingClientRect();
const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
const blocks = [...document.querySelectorAll('h1, h2, h3, p, table, figure, pre, img, svg, td, th')];
if (!blocks.length) flaws.push('an empty page');
for (const e of blocks) {
  if (box(e).right > wide + 1 || box(e).left < -1) flaws.push('cut off: ' + name(e));
  if (e.tagName === 'PRE' && e.scrollWidth > e.clientWidth + 1) flaws.push('scrolls: ' + name(e));
}
const order = [...document.querySelectorAll('h1, h2, h3, p, table, figure, pre')];
for (let i = 0; i < order.length; i++)
  for (let j = i + 1; j < order.length; j++)
    if (!order[i].contains(order[j]) && over(box(order[i]), box(order[j])))
      flaws.push('overlap: ' + name(order[i]) + ' | ' + name(order[j]));
for (const svg of document.querySelectorAll('svg')) {
  const texts = [...svg.querySelectorAll('g[id^="text_"]')];
  const number = [...document.querySelectorAll('svg')].indexOf(svg);
  for (let i = 0; i < texts.length; i++) {
    const a = box(texts[i]), whole = box(svg);
    if (a.left < whole.left - 1 || a.right > whole.right + 1 || a.top < whole.top - 1 || a.bottom > whole.bottom + 1)
      flaws.push(`figure ${number}: ${texts[i].id} is cut off`);
    for (let j = i + 1; j < texts.length; j++)
      if (over(a, box(texts[j]))) flaws.push(`figure ${number}: ${texts[i].id} lies over ${texts[j].id}`);
  }
  const legend = svg.querySelector('g[id^="legend_"]');
  for (const line of svg.querySelectorAll('g[id^="line2d_"], g[id^="PolyCollection_"], g[id^="FillBetween"]'))
    if (legend && !legend.contains(line) && over(box(legend), box(line)))
      flaws.push(`figure ${number}: the legend lies over ${line.id}`);
}
const told = document.createElement('pre');
told.id = 'flaws';
told.textContent = JSON.stringify(flaws);
document.body.append(told);
</script>
"""


def flaws(page: str, folder: Path, *, width: int, printed: bool = False) -> list[str]:
    """Lay a page out in a headless browser; return what is cut off, scrolls sideways or overlaps.

    Args:
        page: HTML that needs nothing else.
        folder: Where a copy that measures itself is written.
        width: Of the window, in CSS pixels.
        printed: Lay out as for paper, of that width.
    """
    assert BROWSER is not None
    if printed:
        assert "@media print" in page
        page = page.replace("@media print", "@media all")
    file = folder / f"measured-{width}.html"
    file.write_text(page.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    command = [
        BROWSER, "--headless=new", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},2000",
        f"--user-data-dir={folder / 'browser'}", *(["--no-sandbox"] if os.geteuid() == 0 else []),
        "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout
    [told] = re.findall(r'<pre id="flaws">(.*?)</pre>', dom, re.DOTALL)
    found: list[str] = json.loads(html.unescape(told))
    return found
