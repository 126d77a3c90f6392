r"""What the package uses of rich, imported without a draw from Python's global random stream.

The import of ``rich.style`` draws from it, so a seeded program would go on with other numbers.
"""

from __future__ import annotations

import random

_state = random.getstate()
try:
    from rich.box import SIMPLE
    from rich.console import Console, Group, RenderableType
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
    from rich.text import Text
finally:
    random.setstate(_state)

__all__ = [
    "SIMPLE",
    "BarColumn",
    "Console",
    "DownloadColumn",
    "Group",
    "Progress",
    "RenderableType",
    "Table",
    "Text",
    "TextColumn",
    "TimeRemainingColumn",
]
