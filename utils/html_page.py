"""Pages with pictures as one self-contained HTML file: it can be mailed, moved, and opened without a server."""

import base64
import html
import io

import numpy as np
from PIL import Image

from dataset.catalogue import ClassSet

from .files import make_parent, write_bytes

GENERATOR = '<meta name="generator" content="SegAdapt">'
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.row { display: flex; gap: 6px; } figure { flex: 0 1 480px; margin: 0 0 10px; } figure img { display: block; width: 100%; }
figcaption { font-size: 13px; color: #555; max-width: 480px; overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: 2px 12px 2px 0; text-align: right; }
td:first-child, th:first-child { text-align: left; } .bar { height: 11px; text-align: left; }
.legend span { display: inline-block; margin: 0 14px 2px 0; white-space: nowrap; font-size: 13px; }
.legend i, td i { display: inline-block; width: 13px; height: 13px; margin-right: 5px; vertical-align: -2px; }
"""


def write_page(path: str, title: str, body: str) -> None:
    """Write a page with this title and HTML body."""
    make_parent(path)
    head = f'<meta charset="utf-8">{GENERATOR}<title>{html.escape(title)}</title><style>{STYLE}</style>'
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n'
    )
    write_bytes(path, page.encode())


def is_our_page(path: str) -> bool:
    """True for a file of `write_page`."""
    with open(path, "rb") as file:
        return GENERATOR.encode() in file.read(500)


def figure(picture: np.ndarray, caption: str = "", width: int = 480) -> str:
    """An (H,W,3) uint8 picture with a caption: reduced to `width` pixels if it is wider, else its very pixels."""
    image, kind = Image.fromarray(picture), "PNG"
    if image.width > width:
        image, kind = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.BOX), "JPEG"
    encoded = io.BytesIO()
    image.save(encoded, kind, quality=88)
    data = base64.b64encode(encoded.getvalue()).decode()
    text = html.escape(caption)
    # The browser enlarges small images without blurring their pixels.
    style = "" if kind == "JPEG" else ' style="image-rendering: pixelated"'
    tag = f'<img src="data:image/{kind.lower()};base64,{data}" alt="{text}"{style}>'
    return f"<figure>{tag}<figcaption>{text}</figcaption></figure>"


def row(*figures: str) -> str:
    """Figures side by side."""
    return f'<div class="row">{"".join(figures)}</div>'


def swatch(classes: ClassSet, number: int) -> str:
    """A small square in the colour of class `number`."""
    red, green, blue = classes.colors[number]
    return f'<i style="background: rgb({red},{green},{blue})"></i>'


def legend(classes: ClassSet) -> str:
    """The classes with their colours."""
    entries = (f"<span>{swatch(classes, number)}{html.escape(name)}</span>" for number, name in enumerate(classes.names))
    return f'<p class="legend">{"".join(entries)}</p>'
