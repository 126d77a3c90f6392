r"""The protocol of a latent variable model: what algorithms, training and evaluation ask of a `VAE` or a `Program`."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.batch import Batch


class LatentVariableModel(nn.Module):
    r"""A model p(x, z) of independent data, each with its latents z, and an amortized posterior q(z|x).

    A ``batch`` is ready: it is what `check` returned, or was made of that. It is not checked again. Modules run in
    their present mode: `pyro_vae.fit` sets training mode, the functions of `pyro_vae.evaluation` evaluation mode.

    Attributes:
        latent_shape: Shape of z.
        size: N, the number of training data, where it was declared.
        context_features: C, the number of covariates in ``Batch.context``.
        max_plate_nesting: Number of batch dimensions that plates take in `model_of` and `guide_of`.
    """

    latent_shape: torch.Size
    size: int | None
    context_features: int = 0
    max_plate_nesting: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters."""
        return self._like().dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self._like().device

    def _like(self) -> Tensor:
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next((t for t in tensors if t.dtype.is_floating_point), torch.empty(()))

    # ------------------------------------------------------------------ parameters

    @property
    def theta(self) -> dict[str, nn.Parameter]:
        """The generative parameters by name."""
        raise NotImplementedError

    @property
    def phi(self) -> dict[str, nn.Parameter]:
        """The inference parameters by name."""
        raise NotImplementedError

    def log_parameter_prior_per_datum(self) -> Tensor:
        """Returns log p(theta) / N in nats per datum; 0 without a parameter prior."""
        return torch.zeros((), device=self.device, dtype=self.dtype)

    # ------------------------------------------------------------------ data

    def check(self, data: Any) -> Batch:
        """Returns data as a ready `Batch`.

        Raises:
            InputError: For data that do not fit the model.
        """
        raise NotImplementedError

    def probe_batch(self) -> Batch:
        """Returns a small batch on which the model can run."""
        raise NotImplementedError

    # ------------------------------------------------------------------ densities

    def prior_given(self, batch: Batch) -> TorchDistribution:
        """Returns p(z), or p(z|context) with ``batch_shape == (B,)``."""
        raise NotImplementedError

    def posterior_given(self, batch: Batch) -> TorchDistribution:
        """Returns q(z|x), with ``batch_shape == (B,)``."""
        raise NotImplementedError

    def log_likelihood_of(self, z: Tensor, batch: Batch) -> Tensor:
        """Returns log p(x|z) over the observed cells, in nats, shape ``(..., B)``; z is ``(..., B, *latent_shape)``."""
        raise NotImplementedError

    def log_joint_of(self, z: Tensor, batch: Batch) -> Tensor:
        """Returns log p(x, z) over the observed cells, in nats; shapes as for `log_likelihood_of`."""
        return self.prior_given(batch).log_prob(z) + self.log_likelihood_of(z, batch)

    def log_weights_of(self, batch: Batch, num_particles: int = 1) -> Tensor:
        """Returns log p(x, z_k) - log q(z_k|x) for K draws z_k from q(z|x), in nats, shape ``(K, B)``."""
        q = self.posterior_given(batch)
        z = q.rsample((num_particles,)) if q.has_rsample else q.sample((num_particles,))
        return self.log_joint_of(z, batch) - q.log_prob(z)

    def log_weights(self, data: Any, num_particles: int = 1) -> Tensor:
        r"""Returns :math:`\log w_k = \log p(x, z_k) - \log q(z_k|x)` for :math:`z_k \sim q(z|x)`.

        Never scaled by N/M or by weights: its mean over k is the ELBO of each datum, the log of the mean of w an
        importance estimate of log p(x). Gradients pass through z where q is reparameterizable.

        Arguments:
            data: B data in any form that `check` takes.
            num_particles: K.

        Returns:
            Shape ``(K, B)``, in nats.
        """
        return self.log_weights_of(self.check(data), num_particles)

    @torch.no_grad()
    def dreams(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Returns draws (z, x) from the model: z of shape ``(B, *latent_shape)``, and x in the place of a batch's.

        Arguments:
            batch: Whose size, context, mask and offset the dreams take.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ the Pyro programs

    def model_of(self, batch: Batch) -> Any:
        """The generative program of a ready batch, scaled by N/M where ``size`` is set, and by the data's weights."""
        raise NotImplementedError

    def guide_of(self, batch: Batch) -> Any:
        """The inference program of a ready batch; see `model_of`."""
        raise NotImplementedError
