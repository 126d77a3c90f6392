r"""Training runs with evaluations along the way, which continue after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_vae import VAE, History, Training, fit
from pyro_vae.inference import Inference

_CHECKPOINT, _RECORDS = ".checkpoint", ".jsonl"


def logarithmic(first: int, last: int, per_decade: int) -> list[int]:
    """Returns steps at equal ratios, ``per_decade`` for each decade, from the first to the last (both included)."""
    found, i = {first, last}, 1
    while (step := round(first * 10 ** (i / per_decade))) < last:
        found.add(step)
        i += 1
    return sorted(step for step in found if first <= step <= last)


def fit_with_curve(
    place: Path,
    vae: VAE,
    x: Any,
    inference: Inference,
    training: Training,
    *,
    at: Sequence[int],
    evaluate: Callable[[int], Mapping[str, Any]],
    **options: Any,
) -> tuple[History, list[dict[str, Any]]]:
    """Trains a VAE and evaluates it along the way; after an interruption, the same call continues the run.

    Arguments:
        place: Path, without suffix, of the files of the unfinished run: a checkpoint, and a line for each evaluation.
        vae: The VAE, in the same state as at the first call.
        x: Data; see `pyro_vae.fit`.
        inference: The algorithm.
        training: The settings of the run. Its ``compile`` is True or False: what "auto" decides by timing may differ
            from process to process.
        at: Steps after which to evaluate.
        evaluate: From the step to what is to be remembered, ready for JSON; always the same for the same parameters,
            which it leaves as they are.
        options: Other keywords of `pyro_vae.fit`.

    Raises:
        KeyboardInterrupt: After Ctrl-C; the state of the run is in its files.

    Returns:
        The history, and the records in order, each with ``step``, ``samples`` and the ``seconds`` of training.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    records = _read(place)

    def callback(step: int, metrics: Mapping[str, float]) -> None:
        if step in records:  # an interrupted process evaluated it after its last checkpoint
            return
        found = {"step": step, "samples": int(metrics["samples"]), "seconds": round(metrics["seconds"], 3)}
        records[step] = found | dict(evaluate(step))
        with place.with_name(place.name + _RECORDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(records[step]) + "\n")

    history = fit(
        *(vae, x, inference, replace(training, callback_steps=frozenset(at))),
        callback=callback,
        checkpoint=place.with_name(place.name + _CHECKPOINT),
        **options,
    )
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return history, [records[step] for step in sorted(records)]


def forget(place: Path) -> None:
    """Removes the files of a finished run."""
    for ending in (_CHECKPOINT, _CHECKPOINT + ".tmp", _RECORDS):
        place.with_name(place.name + ending).unlink(missing_ok=True)


def _read(place: Path) -> dict[int, dict[str, Any]]:
    """Returns the records so far, by step; removes a truncated last line from the file."""
    file = place.with_name(place.name + _RECORDS)
    if not file.exists():
        return {}
    whole, _, rest = file.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        file.write_text(whole + "\n" * bool(whole), encoding="utf-8")
    records = [json.loads(line) for line in whole.splitlines()]
    return {record["step"]: record for record in records}
