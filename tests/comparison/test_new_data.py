"""New rows in their own units: what is refused, and how it is named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_vae.comparison.new_data import read
from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment


def test_the_value_is_that_of_the_file_not_the_scaled_one(tmp_path):
    random = np.random.default_rng(0)
    pd.DataFrame({"a": random.random(40) * 10, "b": random.random(40)}).to_csv(tmp_path / "t.csv", index=False)
    likelihood = {"family": "ContinuousBernoulli"}
    experiment = Experiment.parse(
        {"data": {"name": str(tmp_path / "t.csv"), "scaling": "unit"}, "likelihood": likelihood}
    )
    vae = experiment.build(data := experiment.load_data())
    path = tmp_path / "new.csv"
    path.write_text("b,a\n0.5,5\n0.5,77\n")
    with pytest.raises(InputError, match=r"^`.*new\.csv`: `77` in data row 2 .*, column `a` lies outside the support"):
        read(vae, data.units, path)
    np.save(tmp_path / "new.npy", np.array([[5, 0.5], [77, 0.5]]))
    with pytest.raises(InputError, match=r"^`.*new\.npy`: `77` in data row 2 .*, column `a` lies"):
        read(vae, data.units, tmp_path / "new.npy")
