"""What the tests of the report share: tables as text, and a page as a browser would see it."""

import io
from html.parser import HTMLParser

import numpy as np
from matplotlib.image import imread
from rich.console import Console

from pyro_vae.comparison.report import write_report


def cells(table):
    return list(zip(*(map(str, column.cells) for column in table.columns), strict=True))


def headers(table):
    return [str(column.header) for column in table.columns]


def printed(table):
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


class Page(HTMLParser):
    """What a browser would see: sections, text, and every attribute that may load something."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.sections, self.images, self.loads, self.text = [], [], [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        if tag == "section":
            self.sections.append(attrs["id"])
        if tag == "img":
            self.images.append(attrs)
        if tag == "th":
            assert attrs["scope"] in ("col", "row")
        self.loads += [value for name, value in attrs.items() if name in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(comparison, folder):
    path = folder / "report.html"
    write_report(comparison, path)
    text = path.read_text(encoding="utf-8")
    parsed = Page(text)
    assert not parsed.open
    assert all(value.startswith("data:image/png;base64,") for value in parsed.loads)
    for word in ("http:", "https:", "url(", "@import", "<script", "<link", "<iframe"):
        assert word not in text
    assert all(image["alt"] for image in parsed.images)
    assert len(text) < 3_000_000
    return text, parsed


def pixels(png):
    return imread(io.BytesIO(png))


def contains(image, colour):
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(image[..., :3] - wanted).max(-1) < 0.01).any())
