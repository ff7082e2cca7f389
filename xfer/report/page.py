"""One self-contained HTML page: sections of figures first, numbers beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from shards.format.whole import write_text
from xfer import figures

PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1e293b; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #e2e8f0; padding-bottom: .3rem }
td:last-child { min-width: 12rem }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.row > figure { margin: 0; flex: 1 1 26rem; max-width: 34rem } svg { width: 100%; height: auto }
figcaption { color: #475569; font-size: .9rem }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; display: block; overflow-x: auto }
td, th { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #e2e8f0 } td.n, th.n { text-align: right }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem } .tiles figure { margin: 0; width: 8.5rem }
.tiles img { width: 100%; image-rendering: auto; border-radius: 4px } .wide img { max-width: 100% }
pre { font-size: .85rem; background: #f8fafc; padding: .8rem; overflow-x: auto }
.wrong { color: #b91c1c } .chosen td { background: #fef9c3 }
@media (max-width: 40rem) { td, th { padding: .25rem .4rem } td:last-child { min-width: 0 } }
</style></head><body>
<h1>{{ title }}</h1><p>{{ lead }}</p>
{% for s in sections %}<section><h2>{{ s.title }}</h2>{% if s.text %}<p>{{ s.text }}</p>{% endif %}
{% if s.notes %}<ul>{% for note in s.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
{% if s.plots %}<div class="row">{% for svg, caption in s.plots %}<figure>{{ svg | safe }}
<figcaption>{{ caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% if s.tiles %}<div class="tiles">{% for uri, caption, good in s.tiles %}<figure>
<img src="{{ uri }}" alt="{{ caption }}">
<figcaption{% if not good %} class="wrong"{% endif %}>{{ caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% if s.table %}<table><tr>{% for c in s.table[0] %}<th>{{ c }}</th>{% endfor %}</tr>
{% for r in s.table[1:] %}<tr{% if loop.index0 == s.marked %} class="chosen"{% endif %}>
{% for c in r %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</table>{% endif %}
{% if s.code %}{% set lines = s.code.count("\n") %}<details{% if lines <= 30 %} open{% endif %}>
<summary>{{ lines }} lines</summary><pre>{{ s.code }}</pre></details>{% endif %}</section>{% endfor %}
</body></html>
""",
    autoescape=True,
)


@dataclass
class Section:
    """A heading with any of: text, notes, plots (SVG, caption), tiles (image URI, caption, right or wrong), a table
    (header first), code.
    """

    title: str
    text: str = ""
    plots: Sequence[tuple[str, str]] = ()
    tiles: Sequence[tuple[str, str, bool]] = ()
    table: Sequence[Sequence[Any]] = ()
    marked: int | None = None  # row of the table to stand out
    notes: Sequence[str] = ()
    code: str = ""


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes the page whole or not at all."""
    write_text(path, PAGE.render(title=title, lead=lead, sections=sections))
    return path


def tiles(images: Mapping[str, Sequence[tuple[Image.Image, str]]], side: int = 128) -> list[tuple[str, str, bool]]:
    """Images of each source with their labels, as tiles."""
    return [
        (figures.picture(image, side), f"{source}: {label}", True)
        for source, few in images.items()
        for image, label in few
    ]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
