r"""The table of published values beside ours, made of the committed results.

    python -m benchmarks.published_table              # prints it
    python -m benchmarks.published_table --write      # puts it into benchmarks/README.md

A result tells its rows under the key ``against_published``, a list of mappings: ``what``, ``published`` and ``ours``
(numbers, or words), ``error`` (of ours: a number, or a mapping of its value and of what it is), ``unit``, ``source``
(of the published value), ``command`` (default: that of the result) and ``note`` (what explains a difference). Results
without that key are passed over.
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
        SystemExit: For a row of another form, with the file's name.
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
    """Returns the rows in Markdown; what explains a difference stands below, by number."""
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
        ours = number(row["ours"]) + said(row.get("error"))
        cells = (what, number(row["published"]), ours, difference(row), command)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", *(f"{i}. {text}" for text, i in notes.items())]).rstrip()


def number(value: Any) -> str:
    """Returns a value in words, a number with as many decimals as its size needs."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    return 0 if float(value).is_integer() and abs(value) >= 1000 else 1 if abs(value) >= 1000 else 2


def said(error: Any) -> str:
    """Returns how uncertain a value is, in words, with what that is."""
    if error is None:
        return ""
    if isinstance(error, dict):
        values = [value for value in error.values() if isinstance(value, int | float)]
        words = [value for value in error.values() if isinstance(value, str)]
        return "".join(f" ± {number(value)}" for value in values[:1]) + "".join(f" ({text})" for text in words)
    return f" ± {number(error)}" if isinstance(error, int | float) else f" {error}"


def difference(row: dict[str, Any]) -> str:
    """Returns ours minus the published value; nothing where one of them is no number."""
    ours, published = row["ours"], row["published"]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (ours, published)):
        return "-"
    return f"{ours - published:+.2f}"


def within(text: str) -> str:
    """Returns what stands between the markers."""
    return text.split(BEGIN)[1].split(END)[0].strip()


def main() -> None:
    """Prints the table, or puts it into the README."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"puts it between the markers of {README.name}")
    made = table(rows_of())
    if not parser.parse_args().write:
        print(made)
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
