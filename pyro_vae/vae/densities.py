r"""The densities of a VAE: p(z), p(x|z) and q(z|x) of a batch that is ready."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.distributions.masking import masked
from pyro_vae.distributions.pushed import Pushed
from pyro_vae.distributions.statistics import Statistics
from pyro_vae.errors import InputError
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.derived_posterior import Pushforward
from pyro_vae.vae.finite import check_finite
from pyro_vae.vae.hierarchy import Reads
from pyro_vae.vae.latent_variable_model import LatentVariableModel
from pyro_vae.vae.named import DATUM, DRAW, Named
from pyro_vae.vae.part import needs_posterior, start_at, starts_at_data, takes_offset


class Densities(LatentVariableModel):
    """The densities of a `VAE`, from its three parts."""

    prior: nn.Module
    likelihood: nn.Module
    posterior: nn.Module
    event_shape: torch.Size

    @property
    def takes_offset(self) -> bool:
        """Whether a parameter of the likelihood takes the offset of a batch."""
        return takes_offset(self.likelihood)

    @property
    def has_decoder(self) -> bool:
        """Whether p(x|z) is one distribution of all of x."""
        return True

    @property
    def starts_at_data(self) -> bool:
        """Whether the likelihood has a start at the location and scale of data."""
        return starts_at_data(self.likelihood)

    def start_at(self, data: Statistics) -> None:
        """Puts the likelihood at the location and scale of data; see `pyro_vae.vae.part.start_at`."""
        start_at(self.likelihood, data)

    def prior_given(self, data: Batch | Tensor | None) -> TorchDistribution:
        """Returns p(z), or p(z|context) with ``batch_shape == (B,)``.

        Arguments:
            data: A batch, or its context of shape ``(B, C)``; None where there is no context.
        """
        context = data.context if isinstance(data, Batch) else data
        return self.prior(*([] if context is None else [context]), **self._handed(self.posterior))

    def _handed(self, posterior: nn.Module | None) -> dict[str, Any]:
        """What the prior is handed beside the context: the posterior, where it is made of it."""
        if not needs_posterior(self.prior):
            return {}
        if posterior is None:
            raise InputError(
                f"VAE: the prior `{type(self.prior).__name__}` is made of the posterior, which must be declared: pass "
                "posterior=Conditional(dist.Normal, (L,), given=...)."
            )
        return {"posterior": posterior}

    def likelihood_given(self, z: Tensor, batch: Tensor | Batch | None = None) -> TorchDistribution:
        """Returns p(x|z); arguments as for `VAE.decode`."""
        if not isinstance(batch, Batch):
            return self.likelihood(self._decoded(z, []))
        given = self._decoded(z, [] if batch.context is None else [batch.context])
        return self.likelihood(given) if batch.offset is None else self.likelihood(given, batch.offset)

    def _decoded(self, z: Tensor, covariates: list[Tensor]) -> Tensor:
        """What the likelihood receives: z flattened, or the layers of it that it reads, and the context behind it."""
        given = _flatten(z, len(self.latent_shape)).to(self.dtype)
        if isinstance(self.likelihood, Reads):
            given = self.likelihood.select(given, self.prior)
        return torch.cat([given, *(c.expand(*given.shape[:-1], -1) for c in covariates)], dim=-1)

    def observed(self, z: Tensor, batch: Batch) -> tuple[TorchDistribution, Tensor]:
        """Returns p(x|z) and x, over the observed cells alone."""
        x_given_z = self.likelihood_given(z, batch)
        return (x_given_z, batch.x) if batch.mask is None else masked(x_given_z, batch.x, batch.mask)

    def posterior_input(self, batch: Batch) -> Tensor:
        """Returns what the posterior receives: x with masked cells 0, flattened, and the context behind it."""
        x = batch.x if batch.mask is None else torch.where(batch.mask, batch.x, torch.zeros_like(batch.x))
        given = _flatten(x, len(self.event_shape))
        return given if batch.context is None else torch.cat([given, batch.context], dim=-1)

    def posterior_given(self, batch: Batch) -> TorchDistribution:
        """Returns q(z|x), with ``batch_shape == (B,)``."""
        try:
            return self.posterior(self.posterior_input(batch))
        except ValueError as error:
            if not isinstance(error, InputError):  # of Pyro's validation, for parameters that are not finite
                check_finite(batch, "VAE")
            raise

    def local_parameters(self, batch: Batch) -> Tensor:
        """Returns the output of the posterior's network, in unconstrained space; `Learned` parameters are not free."""
        base = conditional_of(self.posterior)
        raw = base.network_output(self.posterior_input(batch))
        if not base.distribution(raw).has_rsample:
            raise InputError(
                f"follows the reparameterized gradient of q's parameters, but draws of `{base.family.__name__}` have "
                "none; use a posterior with rsample, such as Normal; log_marginal and elbo give the total gap of any "
                "posterior."
            )
        return raw

    def local_posterior(self, batch: Batch) -> Callable[[Tensor], TorchDistribution]:
        """Returns the map from outputs of the posterior's network to q; see `local_parameters`."""
        base = conditional_of(self.posterior)
        if base is self.posterior:
            return base.distribution
        transforms = self.posterior_given(batch).transforms
        return lambda raw: Pushed(base.distribution(raw), transforms)

    def log_likelihood_of(self, z: Tensor, batch: Batch) -> Tensor:
        """Returns log p(x|z) over the observed cells, in nats, shape ``(..., B)``; z is ``(..., B, *latent_shape)``."""
        x_given_z, x = self.observed(z, batch)
        return x_given_z.log_prob(x)

    @torch.no_grad()
    def dreams(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Returns draws (z, x) from the model; see `LatentVariableModel.dreams`."""
        p = self.prior_given(batch)
        z = p.sample() if p.batch_shape else p.sample((batch.size,))
        return z, batch._replace(x=self.likelihood_given(z, batch).sample().to(self.dtype))

    # ------------------------------------------------------------------ the variables by name

    def named_latents(self, z: Tensor, batch: Batch) -> dict[str, Named]:
        """Returns ``z`` with the dimensions draw, datum, latent; events of several dimensions are flattened."""
        return {"z": Named(z.reshape(*z.shape[:2], -1), (DRAW, DATUM, "latent"))}

    def named_data(self, batch: Batch) -> dict[str, Named]:
        """Returns ``x`` with the dimensions datum, cell; hidden cells are nan."""
        x = batch.x if batch.mask is None else batch.x.masked_fill(~batch.mask, torch.nan)
        return {"x": Named(x.reshape(batch.size, -1), (DATUM, "cell"))}

    def named_draws(self, z: Tensor, batch: Batch) -> dict[str, Named]:
        """Returns draws of ``x`` from p(x|z), with the dimensions draw, datum, cell."""
        x = self.likelihood_given(z, batch).sample()
        return {"x": Named(x.reshape(*z.shape[:2], -1), (DRAW, DATUM, "cell"))}

    def log_likelihoods_of(self, z: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Returns log p(x|z) as that of ``x``, shape ``(K, B)``."""
        return {"x": self.log_likelihood_of(z, batch)}


def conditional_of(posterior: nn.Module) -> Conditional:
    """Returns the `Conditional` whose network outputs the parameters of a posterior, also of a pushed one.

    Raises:
        InputError: If there is none.
    """
    base = posterior.base if isinstance(posterior, Pushforward) else posterior
    if not isinstance(base, Conditional) or base.given is None:
        raise InputError(
            f"needs the parameters that the posterior's network outputs, but a `{type(base).__name__}` does not expose "
            "them; declare the posterior as Conditional(family, shape, given=network)."
        )
    return base


def _flatten(x: Tensor, event_dim: int) -> Tensor:
    """Gives x one event dimension in place of ``event_dim``."""
    if event_dim == 1:
        return x
    return x.unsqueeze(-1) if event_dim == 0 else x.flatten(-event_dim)
