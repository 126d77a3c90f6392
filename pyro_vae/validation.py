r"""Held-out data during training."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyro
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.evaluation import elbo
from pyro_vae.vae import VAE


@dataclass
class Watch:
    """Evaluates the ELBO of held-out data during training, and remembers the best parameters.

    Attributes:
        vae: The VAE in training.
        data: Held-out data; None for none.
        every: Steps between two evaluations.
        patience: Evaluations without improvement after which training is exhausted.
        keep: ``"best"`` or ``"last"``.
        check_support: Whether the data must lie in the likelihood's support.
        steps: When it was evaluated.
        values: The ELBO there, nats per datum.
        best_step: When it was best.
    """

    vae: VAE
    data: Batch | None
    every: int
    patience: int | None
    keep: str
    check_support: bool
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    best_step: int | None = None
    best_state: dict[str, Tensor] | None = None

    def due(self, step: int, total: int) -> bool:
        """Whether to evaluate after this step."""
        return self.data is not None and (step % self.every == 0 or step == total)

    def evaluate(self, step: int) -> float:
        """Evaluates, records and returns the ELBO, nats per datum."""
        if self.data is None:
            raise RuntimeError("no validation data")
        with pyro.validation_enabled(self.check_support):
            value = elbo(self.vae, self.data, num_samples=1).value  # the same noise at each evaluation
        if not self.values or value > max(self.values):
            self.best_step = step
            if self.keep == "best":
                self.best_state = {name: t.detach().clone() for name, t in self.vae.state_dict().items()}
        self.steps.append(step)
        self.values.append(value)
        return value

    @property
    def exhausted(self) -> bool:
        """Whether the validation bound has not improved for longer than the patience."""
        if self.patience is None or not self.values:
            return False
        return len(self.values) - 1 - int(np.argmax(self.values)) >= self.patience

    def restore(self) -> None:
        """Puts the best parameters in place, where they are the ones to keep."""
        if self.best_state is not None:
            self.vae.load_state_dict(self.best_state)
