r"""Estimates with their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import InputError

# Above this Pareto k-hat, an importance-sampled log p(x) and its error are not reliable.
PARETO_LIMIT = 0.7

# Below this effective sample size, one weight dominates the mean: its error and bias are not reliable.
FEWEST_WEIGHTS = 2.0


@dataclass(frozen=True)
class Estimate:
    """An estimate of a mean over data, in nats per datum, with its errors.

    Attributes:
        value: Mean over the data.
        standard_error: Monte Carlo standard error of ``value``, given these data.
        sampling_error: Standard error of ``value`` as an estimate of the mean over the data's population.
        pointwise: Value of each datum, shape ``(N,)``.
        diagnostics: Settings, such as ``method``, ``num_samples`` and ``seed``, and in a comparison ``data``,
            ``part`` and ``binarisation``. Also numbers of each datum, shape ``(N,)``: ``pointwise_error``, the Monte
            Carlo standard error; and, for importance weights, ``pareto_k``, ``effective_sample_size`` and ``bias``.

    Example:
        >>> import torch
        >>> Estimate.of(torch.tensor([-1.0, -3.0]), torch.tensor([0.3, 0.4]))
        Estimate(-2.0000 ± 0.2500 (Monte Carlo) ± 1.0000 (data), 2 data)
    """

    value: float
    standard_error: float
    sampling_error: float
    pointwise: Tensor
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, pointwise: Tensor, pointwise_error: Tensor, weight: Tensor | None = None, **diagnostics: Any
    ) -> Estimate:
        """Returns the estimate of the mean of independent per-datum estimates.

        Arguments:
            pointwise: Estimate of each datum, shape ``(N,)``, in nats.
            pointwise_error: Monte Carlo standard error of each, shape ``(N,)``.
            weight: Weight of each datum in the mean, shape ``(N,)``; only ratios matter.
            **diagnostics: Further diagnostics, stored unchanged.
        """
        pointwise, pointwise_error = pointwise.double().cpu(), pointwise_error.double().cpu()
        n = len(pointwise)
        share = torch.ones(n).double() if weight is None else weight.double().cpu()
        share = share / share.sum()
        value = (share * pointwise).sum()
        spread = (share * (pointwise - value)).square().sum().sqrt()
        return cls(
            value=float(value),
            standard_error=float((share * pointwise_error).square().sum().sqrt()),
            sampling_error=float(spread * (n / (n - 1)) ** 0.5) if n > 1 else float("nan"),
            pointwise=pointwise,
            diagnostics={"pointwise_error": pointwise_error, **diagnostics},
        )

    def __repr__(self) -> str:
        reason, untrusted = self._doubt()
        warning = f", {reason} for {untrusted}: not to be trusted there" if untrusted else ""
        return (
            f"Estimate({self.value:.4f} ± {self.standard_error:.4f} (Monte Carlo) ± {self.sampling_error:.4f} (data), "
            f"{len(self.pointwise)} data{warning})"
        )

    def _doubt(self) -> tuple[str, int]:
        """Returns the sign of an unreliable error, and the number of data with it; inf or nan errors do not count."""
        if "pareto_k" in self.diagnostics:
            return f"k-hat > {PARETO_LIMIT}", int((self.diagnostics["pareto_k"] > PARETO_LIMIT).sum())
        if "effective_sample_size" not in self.diagnostics:
            return "", 0
        few = self.diagnostics["effective_sample_size"] < FEWEST_WEIGHTS
        stated = self.diagnostics["pointwise_error"].isfinite()
        return f"effective sample size < {FEWEST_WEIGHTS:g}", int((few & stated).sum())

    def __sub__(self, other: Estimate) -> Estimate:
        """Returns the paired difference of two estimates for the same data with independent draws.

        Raises:
            InputError: If their numbers of data differ.
        """
        if not isinstance(other, Estimate):
            return NotImplemented
        if len(self.pointwise) != len(other.pointwise):
            raise InputError(
                f"Estimate: a difference needs estimates for the same data; one is for {len(self.pointwise)} data, the "
                f"other for {len(other.pointwise)}."
            )
        errors = [estimate.diagnostics.get("pointwise_error") for estimate in (self, other)]
        known = [torch.full_like(self.pointwise, math.nan) if error is None else error for error in errors]
        return Estimate.of(self.pointwise - other.pointwise, torch.hypot(*known))

    def shifted(self, constant: float | Tensor) -> Estimate:
        """Returns the estimate with a constant added to every datum, such as the log-Jacobian of a change of units.

        Arguments:
            constant: A number; or, for an estimate without weights, one number for each datum, shape ``(N,)``.
        """
        return self.about(constant)

    def about(self, constant: float | Tensor = 0.0, **diagnostics: Any) -> Estimate:
        """Returns the estimate, shifted as by `shifted`, with further diagnostics, such as the name of the data."""
        if isinstance(constant, Tensor):
            errors = self.diagnostics.get("pointwise_error", torch.full_like(self.pointwise, math.nan))
            moved = Estimate.of(self.pointwise + constant.double().cpu(), errors)
            return replace(moved, diagnostics={**self.diagnostics, **diagnostics})
        return Estimate(
            self.value + constant,
            self.standard_error,
            self.sampling_error,
            self.pointwise + constant,
            {**self.diagnostics, **diagnostics},
        )


class LogMean(NamedTuple):
    r"""Log of the mean of independent weights of each datum, with measures of its quality; in nats.

    .. math:: \log \bar w = \log \frac{1}{S} \sum_s w_s

    If E[w] = p(x), this estimates log p(x). All attributes except ``value`` hold to leading order in the weights'
    relative variance; they are not reliable if this variance is infinite (Pareto k-hat above 0.5) or few weights
    dominate the mean.

    Attributes:
        value: Log of the mean weight, shape ``(N,)``.
        error: Standard error of ``value``, by the delta method; nan for a single weight.
        effective_sample_size: Effective sample size of the weights.
        bias: Amount by which ``value`` is too low in expectation: the weights' relative variance / 2S; nan for a
            single weight.

    Example:
        >>> import torch
        >>> LogMean.of(torch.tensor([[1.0], [3.0]]).log()).value.exp()
        tensor([2.])
    """

    value: Tensor
    error: Tensor
    effective_sample_size: Tensor
    bias: Tensor

    @classmethod
    def of(cls, log_weights: Tensor) -> LogMean:
        """Returns the log mean of the weights, given their logs, shape ``(S, N)``."""
        n = len(log_weights)
        value = log_weights.logsumexp(0) - math.log(n)
        relative = (log_weights - value).exp()
        error = relative.std(0) / math.sqrt(n) if n > 1 else torch.full_like(value, math.nan)
        return cls(value, error, n**2 / relative.square().sum(0), error.square() / 2)
