r"""The coordinates in which latents are shown and moved: unconstrained space, where one is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions.transforms import Transform

from pyro_vae.batch import Batch
from pyro_vae.distributions.moments import centre, representative_and_error
from pyro_vae.distributions.simplex import bijection_onto
from pyro_vae.distributions.support import cells_of, is_real, support_of
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import rows_at_once
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Largest numbers of data that are encoded, and of latents that are decoded, at once.
_CHUNK, _ROWS = 10_000, 20_000


class Coordinates:
    r"""The coordinates u of latents, :math:`z = T(u)`, with T the bijection onto the prior's support.

    They are z itself where the support is the real space, and where no bijection is known: for discrete latents and on
    a sphere. A simplex of L cells has L - 1 coordinates.

    Arguments:
        vae: The model.
        batch: A ready batch of B data, whose context the prior is given.

    Attributes:
        prior: p(z).
        unconstrained: Whether u is not z itself.
        bijective: Whether every u stands for a z in the support.
        size: Number of coordinates.
        blocks: Number of joint events that z consists of, such as spheres; 1 for cells that are each by themselves.

    Reference: Kucukelbir et al., "Automatic differentiation variational inference", 2017, section 2.3, for T.
    """

    def __init__(self, vae: LatentVariableModel, batch: Batch) -> None:
        self.prior = vae.prior_given(batch)
        support = support_of(self.prior)
        self.transform: Transform | None
        try:
            self.transform = bijection_onto(support)
        except NotImplementedError:
            self.transform = None
        self.bijective = self.transform is not None
        self.unconstrained = self.bijective and not is_real(support)
        self._latent_shape = vae.latent_shape
        self._shape = vae.latent_shape
        if self.transform is not None:
            self._shape = torch.Size(self.transform.inverse_shape(vae.latent_shape))
        self.size = self._shape.numel()
        joint = cells_of(self.prior).event_shape
        self.blocks = vae.latent_shape.numel() // joint.numel() if joint else 1

    def of(self, z: Tensor) -> Tensor:
        """Returns u, shape ``(..., B, size)``, of z with shape ``(..., B, *latent_shape)``."""
        u: Tensor = z if self.transform is None else self.transform.inv(z)
        return u.reshape(*u.shape[: u.dim() - len(self._shape)], self.size)

    def latents(self, u: Tensor) -> Tensor:
        """Returns z, shape ``(..., B, *latent_shape)``, of u with shape ``(..., B, size)``."""
        shaped = u.reshape(*u.shape[:-1], *self._shape)
        z: Tensor = shaped if self.transform is None else self.transform(shaped)
        return z

    def check(self, z: Tensor, message: str) -> None:
        """Raises an `InputError` with a message if z may lie outside the prior's support, and does.

        Arguments:
            z: Latents, shape ``(..., B, *latent_shape)``, of coordinates that were moved.
            message: What the caller says.
        """
        if not self.bijective and not bool(self.prior.support.check(z).all()):
            raise InputError(message)


class Points(NamedTuple):
    """One point for each datum in the coordinates of the latents.

    Attributes:
        u: Coordinates of the posteriors' means, shape ``(N, n)``.
        z: The means themselves, shape ``(N, *latent_shape)``.
        error: Mean variance of their Monte Carlo error, shape ``(n,)``; 0 where they are not computed from draws.
        names: Name of each coordinate.
        unconstrained: Whether u is not z itself.
    """

    u: Tensor
    z: Tensor
    error: Tensor
    names: tuple[str, ...]
    unconstrained: bool

    @property
    def activity(self) -> Tensor:
        r"""The variance of each coordinate over the data, :math:`\mathrm{Var}_x(u_j)`, without that of the error.

        Reference: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2015, section 5.2.
        """
        variance: Tensor = self.u.double().var(0) - self.error.double()
        return variance.clamp_min(0)


def points_of(vae: LatentVariableModel, batch: Batch) -> Points:
    """Returns the mean of each datum's posterior (its mode where the mean lies outside the support) in coordinates.

    Arguments:
        vae: The model; it runs in evaluation mode.
        batch: What `evaluated` returns.
    """
    u, z, errors = [], [], []
    names: tuple[str, ...] = ()
    unconstrained = False
    with evaluating(vae), isolated(0, "latent space"):
        for start in range(0, batch.size, _CHUNK):
            part = batch.select(slice(start, start + _CHUNK)).to(vae.device, vae.dtype)
            coordinates = Coordinates(vae, part)
            mean, error = representative_and_error(vae.posterior_given(part))
            z.append(mean.to(vae.dtype))
            u.append(coordinates.of(z[-1]))
            known = error is not None and not coordinates.unconstrained  # else it is the error of z, not of u
            errors.append(error.flatten(1) if error is not None and known else torch.zeros_like(u[-1]))
            names = names or names_of(vae, part, z[-1], coordinates.size)
            unconstrained = coordinates.unconstrained
    return Points(torch.cat(u), torch.cat(z), torch.cat(errors).mean(0), names, unconstrained)


def names_of(vae: LatentVariableModel, batch: Batch, z: Tensor, size: int) -> tuple[str, ...]:
    """Returns the names of the model's latents, numbered; ``u0`` and so on if there is not one coordinate for each.

    Arguments:
        vae: The model.
        batch: B data.
        z: Latents, shape ``(B, *latent_shape)``.
        size: Number of coordinates.
    """
    sizes = {name: value.values[0, 0].numel() for name, value in vae.named_latents(z.unsqueeze(0), batch).items()}
    if sum(sizes.values()) != size:
        return tuple(f"u{i}" for i in range(size))
    whole = len(sizes) == 1 and next(iter(sizes)) == "z"
    return tuple(name if n == 1 and not whole else f"{name}{i}" for name, n in sizes.items() for i in range(n))


def positions(caller: str, dims: Sequence[int], n: int) -> list[int]:
    """Returns positions of coordinates after a check.

    Arguments:
        caller: Name of the calling function, for errors.
        dims: As the user gave them.
        n: Number of coordinates.

    Raises:
        InputError: If they are no different whole numbers from 0 to n - 1.
    """
    whole = all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in dims)
    if not whole or len(set(dims)) < len(dims) or not all(0 <= i < n for i in dims):
        raise InputError(
            f"{caller}: `dims` are different positions of latents, whole numbers from 0 to {n - 1}; got {list(dims)!r}."
        )
    return [int(i) for i in dims]


def require_decoder(caller: str, vae: LatentVariableModel) -> None:
    """Raises an `InputError` for a model without one distribution p(x|z) of all of x."""
    if not vae.has_decoder:
        raise InputError(
            f"{caller}: decodes z, which needs one distribution p(x|z) of all of x, and a `{type(vae).__name__}` has "
            "none; latent_map shows its latents, and its method named_draws draws what it observes at given z."
        )


def decoded(vae: LatentVariableModel, z: Tensor, batch: Batch) -> Tensor:
    """Returns the centre of p(x|z) at z of shape ``(B, *latent_shape)``, with the context of a batch of B data."""
    size = rows_at_once(vae, _ROWS)
    parts = [slice(start, start + size) for start in range(0, len(z), size)]
    return torch.cat([centre(vae.decode(z[part], batch.select(part))) for part in parts])
