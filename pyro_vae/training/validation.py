r"""The validation data during training."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyro
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.errors import NonFiniteError
from pyro_vae.evaluation.importance import elbo
from pyro_vae.inference.interface import Inference
from pyro_vae.vae.latent_variable_model import LatentVariableModel


@dataclass
class Watch:
    """Evaluates the ELBO of validation data during training, and keeps the best parameters.

    Attributes:
        vae: The VAE in training.
        inference: The algorithm, whose parameters and state are kept with the VAE's.
        data: Validation data; None for none.
        every: Steps between two evaluations.
        patience: Number of evaluations without improvement after which training stops early.
        keep: ``"best"`` or ``"last"``.
        check_support: Whether the data must lie in the likelihood's support.
        compile: Whether the evaluation may run compiled; see `elbo`.
        steps: Steps after which the ELBO was evaluated.
        values: The ELBO after each of these steps, nats per datum.
        first: Index of the first value that is compared with others: after the algorithm's warm-up.
        best_step: Step after which it was best; None during a warm-up.
        best_state: Parameters and buffers at that step; None where the last ones are kept.
    """

    vae: LatentVariableModel
    inference: Inference
    data: Batch | None
    every: int
    patience: int | None
    keep: str
    check_support: bool
    compile: Literal["auto", False] = "auto"
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    first: int = 0
    best_step: int | None = None
    best_state: list[dict[str, Tensor]] | None = None

    def due(self, step: int, total: int) -> bool:
        """Whether to evaluate after a step; never where no posterior is trained, as the ELBO then says nothing."""
        return self.data is not None and self.inference.trains_posterior and (step % self.every == 0 or step == total)

    def evaluate(self, step: int) -> float:
        """Evaluates, records and returns the ELBO, nats per datum."""
        if self.data is None:
            raise RuntimeError("no validation data")
        with pyro.validation_enabled(self.check_support):
            value = elbo(self.vae, self.data, num_samples=1, compile=self.compile).value  # the same noise each time
        if math.isnan(value):
            raise NonFiniteError(
                f"fit: the ELBO of the validation data is nan after step {step}; lower the learning rate."
            )
        if self.inference.warming_up:
            self.first = len(self.values) + 1
        elif value > max(self.values[self.first :], default=-math.inf):
            self.best_step = step
            if self.keep == "best":
                self.best_state = [copy.deepcopy(module.state_dict()) for module in (self.vae, self.inference)]
        self.steps.append(step)
        self.values.append(value)
        return value

    @property
    def exhausted(self) -> bool:
        """Whether the validation bound has not improved for as many evaluations as the patience."""
        compared = self.values[self.first :]
        if self.patience is None or not compared:
            return False
        return len(compared) - 1 - int(np.argmax(compared)) >= self.patience

    def state(self) -> dict[str, Any]:
        """Returns the evaluations and the best parameters."""
        return {
            "steps": self.steps,
            "values": self.values,
            "first": self.first,
            "best_step": self.best_step,
            "best_state": None if self.best_state is None else [dict(state) for state in self.best_state],
        }

    def put_back(self, state: Mapping[str, Any]) -> None:
        """Puts the state back that `state` returned."""
        self.steps, self.values, self.first = list(state["steps"]), list(state["values"]), state["first"]
        self.best_step, self.best_state = state["best_step"], state["best_state"]

    def restore(self) -> None:
        """Puts the best parameters in place, where those are kept."""
        if self.best_state is not None:
            for module, state in zip((self.vae, self.inference), self.best_state, strict=True):
                module.load_state_dict(state)
