"""What the tests of the report share: small comparisons, and a page as a browser would see it."""

import dataclasses
import io
from html.parser import HTMLParser

import numpy as np
import torch
from matplotlib.image import imread
from rich.console import Console

from pyro_vae.comparison.comparison import compare
from pyro_vae.comparison.report import write_report
from pyro_vae.datasets import load
from pyro_vae.experiment import Experiment

BINARY = torch.distributions.constraints.boolean
SMALL = {
    "networks": {"encoder": {"mlp": [8]}, "decoder": {"mlp": [8]}},
    "training": {"epochs": 1, "batch_size": 20},
    "evaluation": {"num_samples": 50, "temperatures": 5, "chains": 3, "ais_data": 15, "posterior_checks": 0},
    "device": "cpu",
    "seeds": 2,
}


def small(loaded, **changes):
    experiment = Experiment.parse({**SMALL, **changes})
    return compare(experiment, loaded, command="pyro-vae compare small.yaml")


def first_rows(data):
    return dataclasses.replace(data, train=data.train[:60], valid=data.valid[:20], test=data.test[:20])


def few_digits(**options):
    return first_rows(load("digits", support=BINARY, **options))


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
