"""One HTML file that needs nothing else: no network, no scripts, and fit to be printed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment
from markupsafe import Markup, escape
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
figcaption { color: #55606b; max-width: 48rem; } svg { max-width: 100%; height: auto; } li { margin: .5rem 0; }
p, li, dd { max-width: 48rem; } dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0 0 0 1.2rem; }
pre { background: #f4f6f8; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { body { font-size: 12px; max-width: none; margin: 0; padding: 0; }
h2, h3, dt, caption { break-after: avoid; }
tr, figure { break-inside: avoid; } th, td { padding: .2rem .3rem; } .leaks, .unclear, .nothing-seen {
print-color-adjust: exact; } }
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
<thead><tr>{% for name in head %}<th>{{ name | breakable }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr>{% for cell in row %}<td
{%- if cell is number %} class="number"{% endif %}
{%- if cell | verdict %} class="{{ cell | verdict }}"{% endif %}>
{{- cell | breakable }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
"""

SIDE = 96
"""Of a picture, in pixels of the screen: what it shows can be judged without a lens."""

VERDICTS = ("leaks", "unclear", "nothing seen", "refused", "failed", "not scored")


def _verdict(cell: object) -> str:
    """Return the class of a cell that begins with a verdict; nothing for any other."""
    word = str(cell).partition(":")[0] if not isinstance(cell, Markup) else ""
    return word.replace(" ", "-") if word in VERDICTS else ""


def _breakable(cell: object) -> object:
    """Let a long name, such as an attack's, go on in the next line after an underscore."""
    return (
        escape(cell).replace("_", Markup("_<wbr>")) if isinstance(cell, str) and not hasattr(cell, "__html__") else cell
    )


_ENVIRONMENT = Environment(autoescape=True)
_ENVIRONMENT.filters |= {"verdict": _verdict, "breakable": _breakable}


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
    """Return a table; a cell that begins with a verdict (``leaks: …``) has its colour."""
    made = _ENVIRONMENT.from_string(TABLE).render(head=head, rows=rows, caption=caption)
    return Markup(made)


def paragraph(text: str) -> Markup:
    """Return a paragraph of plain text."""
    return Markup("<p>{}</p>").format(text)


def listed(items: Sequence[tuple[str, str]]) -> Markup:
    """Return what each of some words says, in their order."""
    shown = (Markup("<li><strong>{}</strong> {}</li>").format(word, text) for word, text in items)
    return Markup("<ul>{}</ul>").format(Markup("").join(shown))


def glossary(terms: Sequence[tuple[str, str]]) -> Markup:
    """Return terms with their explanations."""
    shown = (Markup("<dt>{}</dt><dd>{}</dd>").format(term, text) for term, text in terms)
    return Markup("<dl>{}</dl>").format(Markup("").join(shown))


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


def picture(pixels: Tensor) -> Markup:
    """Return an image ``[C, H, W]`` of pixels in [0, 1], enlarged without smoothing to at least :data:`SIDE` pixels.

    A small image is enlarged by a whole number, so that all its pixels have one size.
    """
    values = np.round(255 * pixels.clamp(0, 1).movedim(0, -1).numpy()).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values if values.shape[-1] == 3 else values[..., 0]).save(stream, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    width = values.shape[1]
    side = -(-SIDE // width) * width if width < SIDE else SIDE
    return Markup('<img src="{}" width="{}" height="{}" alt="">').format(source, side, side)
