r"""The VampPrior: a mixture of the posterior's distributions at learned pseudo-inputs."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint

from pyro_vae.errors import InputError
from pyro_vae.vae.mixture import MixtureDistribution

# Largest absolute value of initial pseudo-inputs in unconstrained space, if their support is an interval.
_FARTHEST = 7.0
# Smallest distance of random initial pseudo-inputs from the bounds of their support.
_MARGIN = 1e-3


class VampPrior(nn.Module):
    r"""The mixture of variational posteriors: p(z) is q(z|u) averaged over K learned pseudo-inputs u.

    .. math:: p(z) = \frac{1}{K} \sum_{k=1}^K q_\phi(z | u_k)

    The VAE passes the posterior to ``forward``. The posterior is not a submodule: the pseudo-inputs are the only
    parameters. So p(z) changes with phi, and algorithms that update theta and phi separately (``wake-sleep``, ``rws``,
    ``mcem``) are refused. It needs a posterior that is declared, not derived from the prior.

    Arguments:
        features: Number D of cells of one datum.
        components: Number K of pseudo-inputs.
        initial: Initial pseudo-inputs, shape ``(K, D)``, such as the first K training data; default: ``mean``
            with normal noise of standard deviation ``std``.
        mean: Mean of the initial pseudo-inputs.
        std: Standard deviation of the initial pseudo-inputs.
        support: Support of the pseudo-inputs: ``constraints.unit_interval`` for images, ``constraints.real`` (the
            default) for standardised data.

    Raises:
        InputError: For pseudo-inputs of another shape or outside the support.

    Reference: Tomczak and Welling, "VAE with a VampPrior", 2018, equation 9.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import VAE, Conditional, mlp
        >>> vae = VAE(
        ...     prior=VampPrior(64, components=20, mean=0.5, support=constraints.unit_interval),
        ...     likelihood=Conditional(dist.Bernoulli, (64,), given=mlp(8, 50)),
        ...     posterior=Conditional(dist.Normal, (8,), given=mlp(64, 50)),
        ... )
        >>> vae.generate(3).shape
        torch.Size([3, 64])
    """

    needs_posterior: ClassVar[bool] = True

    def __init__(
        self,
        features: int,
        components: int = 500,
        *,
        initial: Tensor | None = None,
        mean: float = 0.0,
        std: float = 0.01,
        support: Constraint = constraints.real,
    ) -> None:
        super().__init__()
        for name, count in (("features", features), ("components", components)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise InputError(f"VampPrior: `{name}` is a positive integer, got `{count!r}`.")
        self.features, self.num_components, self.support = features, components, support
        self.declared = {"mean": mean, "std": std}
        try:
            self._transform = transform_to(support)
        except NotImplementedError:
            raise InputError(
                f"VampPrior: pseudo-inputs cannot be learned within {support}; use constraints.real, "
                "constraints.unit_interval or constraints.positive."
            ) from None
        if initial is None:
            initial = _near(mean, std, (components, features), support)
        if tuple(initial.shape) != (components, features):
            raise InputError(
                f"VampPrior: `initial` must hold one pseudo-input for each component, of shape "
                f"{(components, features)}; got {tuple(initial.shape)}."
            )
        if not bool(support.check(initial).all()):
            raise InputError(f"VampPrior: `initial` has values outside the support {support} of the pseudo-inputs.")
        raw = self._transform.inv(initial)
        # Values on the boundary, such as pixels of exactly 0 and 1, lie at infinity, where there is no gradient.
        raw = raw.clamp(-_FARTHEST, _FARTHEST) if isinstance(support, constraints.interval) else raw
        raw = raw.nan_to_num(neginf=-_FARTHEST)
        self.raw = nn.Parameter(raw.detach().clone())

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs, shape ``(K, D)``."""
        inputs: Tensor = self._transform(self.raw)
        return inputs

    def forward(self, context: Tensor | None = None, *, posterior: nn.Module) -> TorchDistribution:
        """Returns p(z).

        Arguments:
            context: Covariates, shape ``(..., C)``, which are appended to every pseudo-input; or None.
            posterior: Module whose ``forward(context)`` returns q(z|x).

        Returns:
            A mixture with ``batch_shape == ()``, or ``context.shape[:-1]`` given a context.
        """
        inputs = self.pseudo_inputs
        if context is not None:
            leading = context.shape[:-1]
            covariates = context.unsqueeze(-2).expand(*leading, self.num_components, -1)
            inputs = torch.cat([inputs.expand(*leading, *inputs.shape), covariates], dim=-1)
        q = posterior(inputs)
        if not isinstance(q, torch.distributions.Distribution):
            raise InputError(
                "VampPrior: is made of the posterior, which must be a distribution and not the features of an encoder; "
                "pass posterior=Conditional(dist.Normal, (L,), given=...)."
            )
        if q.support is not None and q.support.is_discrete:
            raise InputError(
                "VampPrior: needs continuous latents; use a Conditional or a Mixture prior for discrete ones."
            )
        return MixtureDistribution(dist.Categorical(logits=inputs.new_zeros(inputs.shape[:-1])), q)

    def to_spec(self) -> dict[str, Any]:
        """Returns its entry in the experiment file, without its initial pseudo-inputs."""
        names = {constraints.real: "real", constraints.unit_interval: "unit", constraints.positive: "positive"}
        said: Any = names.get(self.support)
        if said is None and isinstance(self.support, constraints.interval):
            said = [float(self.support.lower_bound), float(self.support.upper_bound)]
        if said is None:
            raise InputError(f"to_spec: pseudo-inputs in {self.support} have no name in an experiment file.")
        return {"vamp": {"components": self.num_components, **self.declared, "pseudo_inputs": said}}

    def extra_repr(self) -> str:
        return f"components={self.num_components}, features={self.features}"


def _near(mean: float, std: float, shape: tuple[int, int], support: Constraint) -> Tensor:
    """Values around a mean, kept within the bounds of a support."""
    values = mean + std * torch.randn(shape)
    if support is constraints.real:
        return values
    low, high = (getattr(support, f"{end}_bound", None) for end in ("lower", "upper"))
    return values.clamp(None if low is None else float(low) + _MARGIN, None if high is None else float(high) - _MARGIN)
