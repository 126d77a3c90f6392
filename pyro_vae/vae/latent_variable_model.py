r"""The protocol of a latent variable model: what algorithms, training and evaluation ask of a `VAE` or a `Program`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.distributions.statistics import Statistics
from pyro_vae.errors import InputError
from pyro_vae.runtime.modes import evaluating
from pyro_vae.vae.finite import CellNames
from pyro_vae.vae.named import Named


class _Scaled(Messenger):
    """Scales and masks all sites but some, in place of the scale of a subsampled plate over data."""

    def __init__(self, scale: float | Tensor, mask: Tensor | None, unscaled: Container[str], dim: int) -> None:
        super().__init__()
        self.scale, self.mask, self.unscaled, self.dim = scale, mask, unscaled, dim

    def _process_message(self, msg: Any) -> None:
        if msg["name"] in self.unscaled:
            return
        msg["scale"] = self.scale * msg["scale"]
        for frame in msg["cond_indep_stack"]:
            if frame.dim == self.dim and frame.full_size is not None and frame.full_size != frame.size:
                msg["scale"] = msg["scale"] * frame.size / frame.full_size
        if self.mask is not None:
            msg["mask"] = self.mask if msg["mask"] is None else msg["mask"] & self.mask


class LatentVariableModel(nn.Module):
    r"""A model p(x, z) of independent data, each with its latents z, and an amortized posterior q(z|x).

    A ``batch`` is ready: it is what `check` returned, or was made of that. It is not checked again. Modules run in
    their present mode: `pyro_vae.fit` sets training mode, the functions of `pyro_vae.evaluation` evaluation mode.

    Attributes:
        latent_shape: Shape of z.
        size: N, the number of training data, where it was declared.
        context_features: C, the number of covariates in ``Batch.context``.
        max_plate_nesting: Number of batch dimensions that plates take in `model_of` and `guide_of`.
        parameter_prior: Prior over theta, if there is one.
        vectorized: Whether K particles run at once; else one after the other.
    """

    latent_shape: torch.Size
    size: int | None
    context_features: int = 0
    max_plate_nesting: int = 1
    vectorized: bool = True
    parameter_prior: Any = None

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

    @property
    def enumerated_sites(self) -> tuple[str, ...]:
        """Names of discrete sites over which the densities are sums."""
        return ()

    @property
    def has_globals(self) -> bool:
        """Whether there are latents that all data share."""
        return False

    def at_globals(self, seed: int = 0, *, prior: bool = False) -> LatentVariableModel:
        """Returns the model given a draw of the latents that all data share; itself where there are none.

        Arguments:
            seed: Seed of the draw.
            prior: Whether to draw from the prior; else from the posterior.
        """
        return self

    @property
    def shared(self) -> list[tuple[str, str]]:
        """Parameters that the generative part has in common with the inference part: its part, and the name there."""
        raise NotImplementedError

    def log_parameter_prior_per_datum(self) -> Tensor:
        """Returns log p(theta) / N in nats per datum; 0 without a parameter prior."""
        return torch.zeros((), device=self.device, dtype=self.dtype)

    @property
    def starts_at_data(self) -> bool:
        """Whether `start_at` does anything."""
        return False

    def start_at(self, data: Statistics) -> None:
        """Puts the likelihood at the location and scale of data, where it is as it was drawn.

        Arguments:
            data: Statistics of the training data.
        """

    # ------------------------------------------------------------------ data

    def check(self, data: Any) -> Batch:
        """Returns data as a ready `Batch`.

        Raises:
            InputError: For data that do not fit the model.
        """
        raise NotImplementedError

    def as_batch(self, data: Any, caller: str, name: str = "x") -> Batch:
        """Returns data as a `Batch` of tensors, in the types in which they are given.

        Arguments:
            data: In any form that `check` takes.
            caller: Name at the start of error messages.
            name: What the data are called there.

        Raises:
            InputError: For data of another form.
        """
        raise NotImplementedError

    def typed(self, batch: Batch) -> Batch:
        """Returns a batch whose tensors have the types in which the model takes them; their shapes are not checked."""
        return batch._replace(x=batch.x.to(self.dtype))

    def value_check(
        self, check_support: bool, unknown_labels: bool = False, names: CellNames | None = None
    ) -> Callable[[Batch, str], Batch]:
        """Returns a function that checks every value of data, given their name, and returns them as a ready batch.

        It raises an `InputError` for values that are not finite, and for those outside the likelihood's support.

        Arguments:
            check_support: Whether to check the support.
            unknown_labels: Whether the context may have rows of nan.
            names: Names the position of a bad value in error messages.
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

    def local_parameters(self, batch: Batch) -> Tensor:
        """Returns the free parameters of each datum at which `local_posterior` is q(z|x), shape ``(B, n)``.

        Raises:
            InputError: If the posterior has none, or no gradient passes through its draws. The message has no subject:
                it says what the caller needs.
        """
        raise NotImplementedError

    def local_posterior(self, batch: Batch) -> Callable[[Tensor], TorchDistribution]:
        """Returns the map from free parameters of each datum, shape ``(B, n)``, to the posterior that has them."""
        raise NotImplementedError

    def log_likelihood_of(self, z: Tensor, batch: Batch) -> Tensor:
        """Returns log p(x|z) over the observed cells, in nats, shape ``(..., B)``; z is ``(..., B, *latent_shape)``."""
        raise NotImplementedError

    def log_joint_of(self, z: Tensor, batch: Batch, p: TorchDistribution | None = None) -> Tensor:
        """Returns log p(x, z) over the observed cells, in nats; shapes as for `log_likelihood_of`.

        Arguments:
            z: Latents.
            batch: The data.
            p: What `prior_given` returns for the batch, if it is at hand.
        """
        prior = self.prior_given(batch) if p is None else p
        return prior.log_prob(z) + self.log_likelihood_of(z, batch)

    def log_probabilities_of(self, site: str, z: Tensor, batch: Batch) -> Tensor:
        """Returns log p(y | x, z) for each value of an enumerated site y, in nats.

        Arguments:
            site: One of `enumerated_sites`.
            z: Latents, shape ``(K, B, L)``.
            batch: The data.

        Returns:
            Shape ``(K, B, n, C)`` for a site of C values in inner plates of n cells in all.
        """
        raise NotImplementedError

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

    def blank(self, n: int, context: Tensor | None = None) -> Batch:
        """Returns a batch of n data whose observed values do not matter, for `dreams`.

        Arguments:
            n: Number of data.
            context: Their context, shape ``(n, C)``, where the model has one.
        """
        raise NotImplementedError

    @torch.no_grad()
    def dreams(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Returns draws (z, x) from the model: z of shape ``(B, *latent_shape)``, and x in the place of a batch's.

        Arguments:
            batch: Whose size, context, mask and offset the dreams take.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ the variables by name

    def named_globals(self) -> dict[str, Named]:
        """Returns the latents that `at_globals` has drawn, by name; none where no data share any."""
        return {}

    def named_latents(self, z: Tensor, batch: Batch) -> dict[str, Named]:
        """Returns the latents of each datum by name, with the dimensions draw, datum and those of one datum.

        Arguments:
            z: K draws, shape ``(K, B, *latent_shape)``.
            batch: The data.
        """
        raise NotImplementedError

    def named_data(self, batch: Batch) -> dict[str, Named]:
        """Returns what the model observes by name, nan where it is hidden; dimensions datum and those of one datum."""
        raise NotImplementedError

    def named_draws(self, z: Tensor, batch: Batch) -> dict[str, Named]:
        """Returns draws of what the model observes, from p(x|z), hidden cells too; arguments as for `named_latents`."""
        raise NotImplementedError

    def log_likelihoods_of(self, z: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Returns the addends of log p(x|z) by name, in nats, shape ``(K, B)``; arguments as for `named_latents`."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what a trained model is used for

    @property
    def takes_offset(self) -> bool:
        """Whether the model uses the offset of a batch, as far as is known."""
        return True

    @property
    def has_decoder(self) -> bool:
        """Whether p(x|z) is one distribution of all of x, which `decode` returns."""
        return False

    def encode(self, data: Any) -> TorchDistribution:
        """Returns q(z|x), with ``batch_shape == (B,)``, computed in evaluation mode.

        Arguments:
            data: In any form that `check` takes. Masked cells of a VAE's data enter as 0.
        """
        batch = self.check(data)
        with evaluating(self):
            return self.posterior_given(batch)

    def decode(self, z: Tensor, batch: Any = None) -> TorchDistribution:
        """Returns p(x|z) at z of shape ``(..., *latent_shape)``; see `VAE.decode`.

        Raises:
            InputError: If the model has no decoder.
        """
        raise InputError(self._without_decoder("decode"))

    def reconstruct(self, data: Any, num_samples: int | None = None) -> Tensor:
        """Returns data encoded and decoded; see `VAE.reconstruct`.

        Raises:
            InputError: If the model has no decoder.
        """
        raise InputError(self._without_decoder("reconstruct"))

    def _without_decoder(self, caller: str) -> str:
        return (
            f"{type(self).__name__}: {caller} needs a VAE, whose likelihood is one distribution of all of x given z; "
            "`dreams` draws x from any model, and `encode` returns q(z|x)."
        )

    @torch.no_grad()
    def generate(self, n: int, context: Any = None) -> Tensor:
        """Returns n draws of x from the model, computed in evaluation mode.

        Arguments:
            n: Number of draws.
            context: Their context, shape ``(n, C)``, where the model has one.
        """
        batch = self.blank(n, None if context is None else torch.as_tensor(context))
        with evaluating(self):
            return self.dreams(self.check(batch))[1].x

    # ------------------------------------------------------------------ the Pyro programs

    @contextmanager
    def scaled(self, batch: Batch, dim: int = -1, unscaled: Container[str] = ()) -> Iterator[None]:
        """A block whose sites are scaled by N/M and by the data's weights.

        Arguments:
            batch: The minibatch of M data.
            dim: Dimension of the plate over data.
            unscaled: Names of sites that all data share.
        """
        scale: float | Tensor = 1.0 if self.size is None else self.size / batch.size
        positive = None
        if batch.weight is not None:  # Pyro refuses a scale of 0
            weight = batch.weight.reshape(-1, *(1 for _ in range(-dim - 1)))
            positive = weight > 0
            scale = scale * torch.where(positive, weight, 1.0)
        with _Scaled(scale, positive, unscaled, dim):
            yield

    def model_of(self, batch: Batch) -> Any:
        """The generative program of a ready batch, scaled by N/M where ``size`` is set, and by the data's weights."""
        raise NotImplementedError

    def guide_of(self, batch: Batch) -> Any:
        """The inference program of a ready batch; see `model_of`."""
        raise NotImplementedError
