r"""The learning curves of a comparison as one table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pyro_vae.comparison.comparison import Comparison


def curves(comparison: Comparison, points: int = 100) -> pd.DataFrame:
    """Returns the learning curves: the training bound, averaged over ``points`` intervals, and the validation ELBO.

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
        window = max(1, history.steps // points)
        ends = np.arange(window, history.steps + 1, window) - 1
        parts = [("train", ends, history.smoothed(window))]
        if len(history.validation_step):
            parts.append(("validation", history.validation_step - 1, history.validation_bound))
        for part, index, bound in parts:
            tables.append(
                pd.DataFrame(
                    {
                        "algorithm": run.algorithm,
                        "seed": run.seed,
                        "part": part,
                        "step": index + 1,
                        "samples": history.samples[index],
                        "seconds": history.seconds[index],
                        "bound": bound + shift[part],
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)
