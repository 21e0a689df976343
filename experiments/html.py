"""One HTML file that needs nothing else: no network, no scripts, and fit to be printed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccd3da; } h3 { margin-bottom: .3rem; }
table { border-collapse: collapse; margin: .8rem 0; }
caption { text-align: left; color: #55606b; padding-bottom: .3rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e3e8ed; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.leaks { background: #fbe3e1; font-weight: 600; } .unclear { background: #fdf3d4; }
.nothing-seen { background: #e2f2e4; }
.refused, .failed, .not-scored { color: #6b7680; } img { image-rendering: pixelated; } figure { margin: 1rem 0; }
figcaption { color: #55606b; } svg { max-width: 100%; height: auto; }
pre { background: #f4f6f8; padding: .8rem; overflow: auto; }
@media print { body { max-width: none; margin: 0; } h2 { break-after: avoid; } table, figure { break-inside: avoid; } }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>{{ style }}</style></head>
<body><h1>{{ title }}</h1>{% if lead %}<p>{{ lead }}</p>{% endif %}
{% for section in sections %}<section id="{{ section.anchor }}"><h2>{{ section.title }}</h2>
{{ section.body }}</section>
{% endfor %}</body></html>
"""

TABLE = """<table>{% if caption %}<caption>{{ caption }}</caption>{% endif %}
<thead><tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr>{% for cell in row %}<td
{%- if cell is number %} class="number"{% endif %}
{%- if cell in verdicts %} class="{{ cell | replace(' ', '-') }}"{% endif %}>
{{- cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
"""

VERDICTS = ("leaks", "unclear", "nothing seen", "refused", "failed", "not scored")

_ENVIRONMENT = Environment(autoescape=True)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of a page.

    Attributes:
        title: Its heading.
        body: HTML; made by this module's functions, which escape what they are given.
    """

    title: str
    body: Markup

    @property
    def anchor(self) -> str:
        """The heading as a fragment."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def page(title: str, sections: Sequence[Section], *, lead: str = "") -> str:
    """Return a whole page."""
    template = _ENVIRONMENT.from_string(PAGE)
    return template.render(title=title, style=Markup(STYLE), sections=sections, lead=lead)


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> Markup:
    """Return a table; a cell that is a verdict has its colour."""
    made = _ENVIRONMENT.from_string(TABLE).render(head=head, rows=rows, caption=caption, verdicts=VERDICTS)
    return Markup(made)


def paragraph(text: str) -> Markup:
    """Return a paragraph of plain text."""
    return Markup("<p>{}</p>").format(text)


def preformatted(text: str) -> Markup:
    """Return text as it is, in lines."""
    return Markup("<pre>{}</pre>").format(text)


def drawing(figure: Figure, caption: str) -> Markup:
    """Return a figure as inline SVG."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    svg = Markup(text[text.index("<svg") :])
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(svg, caption)


def picture(pixels: Tensor, *, size: int = 64) -> Markup:
    """Return an image ``[C, H, W]`` of pixels in [0, 1], as it is, enlarged without smoothing."""
    values = np.round(255 * pixels.clamp(0, 1).movedim(0, -1).numpy()).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values if values.shape[-1] == 3 else values[..., 0]).save(stream, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    return Markup('<img src="{}" width="{}" height="{}" alt="">').format(source, size, size)
