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
figure { display: inline-block; margin: 0 6px 10px 0; vertical-align: top; } figure img { display: block; max-width: 100%; }
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
    """An (H,W,3) uint8 picture, at most `width` pixels wide, with a caption."""
    image = Image.fromarray(picture)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.BOX)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=88, subsampling=0)
    data = base64.b64encode(encoded.getvalue()).decode()
    text = html.escape(caption)
    # Small images are enlarged by the browser, without blurring their pixels.
    shown = width if image.width < width // 2 else image.width
    style = ' style="image-rendering: pixelated"' if shown != image.width else ""
    tag = f'<img src="data:image/jpeg;base64,{data}" width="{shown}" alt="{text}"{style}>'
    return f"<figure>{tag}<figcaption>{text}</figcaption></figure>"


def swatch(classes: ClassSet, number: int) -> str:
    """A small square in the colour of class `number`."""
    red, green, blue = classes.colors[number]
    return f'<i style="background: rgb({red},{green},{blue})"></i>'


def legend(classes: ClassSet) -> str:
    """The classes with their colours."""
    entries = (f"<span>{swatch(classes, number)}{html.escape(name)}</span>" for number, name in enumerate(classes.names))
    return f'<p class="legend">{"".join(entries)}</p>'
