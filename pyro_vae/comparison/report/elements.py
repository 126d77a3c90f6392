"""What the page is made of."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from pyro_vae.comparison.report.tables import TableText


@dataclass(frozen=True)
class Picture:
    """A figure in the page.

    Attributes:
        png: The file.
        alt: What it shows, numbers included, for those who do not see it.
        caption: Above it.
        paper: Whether it has text in dark ink, which needs a white ground.
    """

    png: bytes
    alt: str
    caption: str = ""
    paper: bool = True

    @property
    def source(self) -> str:
        """The file as the address of itself."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"

    @property
    def width(self) -> int:
        """In page pixels: half the pixels of the file, whose header holds them."""
        return int.from_bytes(self.png[16:20], "big") // 2

    @property
    def height(self) -> int:
        """In page pixels."""
        return int.from_bytes(self.png[20:24], "big") // 2


@dataclass(frozen=True)
class Section:
    """A part of the page: a sentence or two, then pictures, then tables.

    Attributes:
        name: Its anchor.
        title: Its heading.
        text: What is shown.
        pictures: In order.
        layout: ``"pairs"`` for two pictures in a row.
        tables: In order.
    """

    name: str
    title: str
    text: str
    pictures: list[Picture] = field(default_factory=list)
    layout: str = ""
    tables: list[TableText] = field(default_factory=list)
