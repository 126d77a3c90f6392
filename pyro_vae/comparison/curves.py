r"""The learning curves of a comparison as one table."""

from __future__ import annotations

import pandas as pd

from pyro_vae.comparison.comparison import Comparison


def curves(comparison: Comparison, points: int = 100) -> pd.DataFrame:
    """Returns the learning curves: the mean training bound of ``points`` intervals or fewer, and the validation ELBO.

    Returns:
        Columns ``algorithm, seed, part, step, samples, seconds, bound``; nats per datum in the data's own units.
    """
    tables = []
    data = comparison.data
    shift = {"train": data.mean_log_jacobian("train"), "validation": 0.0}
    if data.valid is not None:
        shift["validation"] = data.mean_log_jacobian("valid")
    for run in comparison.runs:
        history = run.history
        parts = [("train", *history.curve(points))]
        if len(history.validation_step):
            parts.append(("validation", history.validation_step, history.validation_bound))
        for part, steps, bound in parts:
            tables.append(
                pd.DataFrame(
                    {
                        "algorithm": run.algorithm,
                        "seed": run.seed,
                        "part": part,
                        "step": steps,
                        "samples": history.samples[steps - 1],
                        "seconds": history.seconds[steps - 1],
                        "bound": bound + shift[part],
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)
