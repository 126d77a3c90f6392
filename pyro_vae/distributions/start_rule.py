r"""The rule by which initial parameters of a family follow from data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pyro_vae.distributions.statistics import Statistics


class Start(NamedTuple):
    """Initial parameters.

    Attributes:
        parameters: Values, by name; each broadcasts to its parameter's shape.
        units: For locations and triangular matrices, the scale in which a network's output is to vary, by name.
    """

    parameters: Mapping[str, Tensor]
    units: Mapping[str, Tensor] = {}


class Known(NamedTuple):
    """Parameters that are declared, and sizes.

    Attributes:
        values: Values of fixed parameters, and of learned ones with an initial value of their own, by name.
        sizes: Last dimension of each of the other parameters, by name.
    """

    values: Mapping[str, Any]
    sizes: Mapping[str, int]

    def get(self, name: str, otherwise: Any) -> Any:
        """Returns a declared value, or ``otherwise``."""
        return self.values.get(name, otherwise)


Rule = Callable[[Statistics, Known], Start]

# Bounds of the initial shape of a distribution of counts or of proportions.
LEAST, MOST = 1e-2, 1e3


def from_logits(logits: Tensor) -> Start:
    """Returns the start of a probability."""
    return Start({"logits": logits, "probs": logits.sigmoid()})
