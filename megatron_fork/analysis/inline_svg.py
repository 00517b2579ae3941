"""matplotlib figures as SVG that can stand inside an HTML page, many on one page."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib.style
from markupsafe import Markup
from matplotlib.figure import Figure

from megatron_fork.analysis.colours import PALETTE

INK, MUTED, RULE = (PALETTE[name][0] for name in ("ink", "muted", "rule"))

# "default" first: a user's matplotlibrc must not change the report.
STYLE: list[str | Path | dict[str, Any]] = [
    "default",
    {
        "axes.axisbelow": True,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": MUTED,
        "axes.labelsize": 9,
        "axes.linewidth": 0.8,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.unicode_minus": True,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "font.size": 9,
        "grid.color": RULE,
        "grid.linewidth": 0.8,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "lines.linewidth": 1.5,
        "lines.solid_capstyle": "round",
        "lines.solid_joinstyle": "round",
        # Every point that was written is drawn.
        "path.simplify": False,
        # Text stays text, which takes the font of the page and can be searched.
        "svg.fonttype": "none",
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
    },
]


def inline_svg(figure: Figure, identifier: str, label: str) -> Markup:
    """Return a figure as one `<svg>` element, the same text for the same figure.

    `identifier` opens every id in it, so that figures on one page do not share ids; `label` is what a screen reader
    says. Colours of the palette become CSS variables of the page. The figure must have been made under `STYLE`.
    """
    buffer = io.StringIO()
    with matplotlib.style.context([*STYLE, {"svg.hashsalt": identifier}]):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{identifier}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{identifier}-", svg)
    for name, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{name})")
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box, "matplotlib writes a view box"
    opening = Markup('<svg {} role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg"').format(
        Markup(view_box.group()), label
    )
    xlink = ' xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(opening + Markup(xlink) + Markup(svg[svg.index(">") + 1 :].strip()))
