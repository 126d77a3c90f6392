"""The elements of the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from pyro_vae.comparison.report.tables import TableText


@dataclass(frozen=True)
class Picture:
    """A figure in the page.

    Attributes:
        png: The PNG file.
        alt: Text that describes the picture with its numbers, for readers who cannot see it.
        caption: Text above the picture.
        paper: Whether the picture has dark text, which needs a white background.
    """

    png: bytes
    alt: str
    caption: str = ""
    paper: bool = True

    @property
    def source(self) -> str:
        """The file as a data URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"

    @property
    def width(self) -> int:
        """Width in page pixels: half the width in the header of the file."""
        return int.from_bytes(self.png[16:20], "big") // 2

    @property
    def height(self) -> int:
        """Height in page pixels: half the height in the header of the file."""
        return int.from_bytes(self.png[20:24], "big") // 2


@dataclass(frozen=True)
class Section:
    """A part of the page: a sentence or two, then pictures, then tables.

    Attributes:
        name: Anchor of the section.
        title: Heading of the section.
        text: Description of the pictures and tables.
        pictures: Pictures in order.
        layout: ``"pairs"`` for two pictures in a row.
        tables: Tables in order.
    """

    name: str
    title: str
    text: str
    pictures: list[Picture] = field(default_factory=list)
    layout: str = ""
    tables: list[TableText] = field(default_factory=list)
