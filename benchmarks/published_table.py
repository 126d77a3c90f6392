r"""The table of published values and ours, from the committed results.

    python -m benchmarks.published_table              # prints the table
    python -m benchmarks.published_table --write      # writes it into benchmarks/README.md

The rows of a result are under the key ``against_published``, a list of mappings: ``what``, ``published`` and ``ours``
(numbers or text), ``error`` (of ours: a number, or a mapping with its value and its kind), ``unit``, ``source`` (of
the published value), ``command`` (default: that of the result) and ``note`` (an explanation of the difference). Results
without this key are skipped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- published -->", "<!-- end -->"
KEYS = {"what", "published", "ours", "error", "unit", "source", "command", "note"}
HEADS = ("what", "published", "ours", "difference", "command")
NONE = "No result has published values beside it yet."


def rows_of(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Returns the rows of all results, in the order of their names.

    Raises:
        SystemExit: For a row with missing or unknown keys; the message names the file.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for row in result.get("against_published", []):
            missing, unknown = {"what", "published", "ours"} - set(row), set(row) - KEYS
            if missing or unknown:
                wrong = [f"`{name}` is missing" for name in sorted(missing)]
                wrong += [f"`{name}` is unknown" for name in sorted(unknown)]
                raise SystemExit(f"{path}: a row of `against_published`: {', '.join(wrong)}; known are {sorted(KEYS)}")
            command = row.get("command") or result["environment"]["command"]
            rows.append({**row, "command": command, "file": path.name})
    return rows


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Returns the rows in Markdown, with numbered sources and notes below."""
    rows = list(rows)
    if not rows:
        return NONE
    notes: dict[str, int] = {}
    lines = [f"| {' | '.join(HEADS)} |", "| --- | ---: | ---: | ---: | --- |"]
    for row in rows:
        marks = [notes.setdefault(text, len(notes) + 1) for text in (row.get("source"), row.get("note")) if text]
        what = row["what"] + (f", {row['unit']}" if row.get("unit") else "")
        what += f" [{', '.join(map(str, marks))}]" if marks else ""
        command = f"`{row['command']}` ([result](results/{row['file']}))"
        places = decimals(row)
        ours = number(row["ours"], places) + said(row.get("error"), places)
        cells = (what, number(row["published"], places), ours, difference(row), command)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", *(f"{i}. {text}" for text, i in notes.items())]).rstrip()


def decimals(row: dict[str, Any]) -> int:
    """Returns the number of decimals of a row's numbers, at most 2."""
    error = row.get("error")
    told = [row["published"], row["ours"], *(error.values() if isinstance(error, dict) else [error])]
    return max((min(2, len(repr(value).partition(".")[2])) for value in told if isinstance(value, float)), default=0)


def number(value: Any, places: int) -> str:
    """Returns the text of a value; numbers have ``places`` decimals."""
    if value is None:
        return "-"
    return f"{value:.{places}f}" if is_number(value) else str(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def said(error: Any, places: int) -> str:
    """Returns the text of an error, with its kind."""
    if error is None:
        return ""
    if isinstance(error, dict):
        values = [value for value in error.values() if is_number(value)]
        words = [value for value in error.values() if isinstance(value, str)]
        return "".join(f" ± {number(value, places)}" for value in values[:1]) + "".join(f" ({text})" for text in words)
    return f" ± {number(error, places)}" if is_number(error) else f" {error}"


def difference(row: dict[str, Any]) -> str:
    """Returns the text of ours minus the published value; ``-`` if one of them is no number."""
    ours, published = row["ours"], row["published"]
    return f"{ours - published:+.{decimals(row)}f}" if is_number(ours) and is_number(published) else "-"


def within(text: str) -> str:
    """Returns the text between the markers."""
    return text.split(BEGIN)[1].split(END)[0].strip()


def main() -> None:
    """Prints the table, or writes it into the README."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write it between the markers of {README.name}")
    made = table(rows_of())
    if not parser.parse_args().write:
        print(made)
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
