r"""The variational autoencoder: a prior, a likelihood and a posterior as a Pyro model and guide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.batch import Batch, DataLike
from pyro_vae.distributions import kl  # noqa: F401  registers the divergences that Pyro's TraceMeanField_ELBO asks for
from pyro_vae.distributions.moments import centre, representative
from pyro_vae.errors import InputError
from pyro_vae.runtime.modes import evaluating
from pyro_vae.vae.data_check import ValueCheck
from pyro_vae.vae.declaration_check import (
    call_once,
    check_batch_shape,
    check_blocks,
    check_supports,
    draw_two,
)
from pyro_vae.vae.densities import Densities
from pyro_vae.vae.derived_posterior import derive_posterior, mirrored, onto_support
from pyro_vae.vae.finite import CellNames, check_finite
from pyro_vae.vae.inputs import batch_for, ready
from pyro_vae.vae.latent_variable_model import LatentVariableModel
from pyro_vae.vae.param_store import Registered
from pyro_vae.vae.parameter_prior import ParameterPrior


class Programs(NamedTuple):
    """A Pyro model and guide that leave the param store untouched; their parameters are the module's own."""

    model: Callable[[DataLike], Tensor]
    guide: Callable[[DataLike], Tensor]


def require_model(caller: str, given: object) -> None:
    """Raises an `InputError` that says what to pass where a function was given neither a VAE nor a `Program`."""
    if isinstance(given, LatentVariableModel):
        return
    if isinstance(getattr(given, "vae", None), LatentVariableModel):
        hint = "pass its attribute `vae`"
    elif isinstance(given, type):
        hint = f"make one, such as vae = {given.__name__}(...)"
    else:
        hint = (
            "declare one with your own networks: VAE(prior=Conditional(dist.Normal, (20,), loc=Fixed(0.0), "
            "scale=Fixed(1.0)), likelihood=Conditional(dist.Bernoulli, (784,), given=decoder), posterior=encoder)"
        )
    kind = f"the class `{given.__name__}`" if isinstance(given, type) else f"`{type(given).__name__}`"
    raise InputError(f"{caller}: needs a VAE, got {kind}; {hint}.")


class VAE(Registered, Densities):
    r"""A variational autoencoder, declared once and trained by any inference algorithm.

    .. math:: z \sim p(z), \qquad x \sim p(x|z), \qquad q(z|x) \approx p(z|x)

    `model` and `guide` are Pyro callables for `pyro.infer.SVI`, `Trace_ELBO`, `TraceMeanField_ELBO` and
    `Predictive`; they register the parameters in Pyro's param store under a name of this instance's own, which a
    deep copy and an unpickled instance do not share. `pyro_vae.fit` leaves the param store untouched.

    The generative parameters theta are those of the prior and the likelihood that are not the posterior's; the
    inference parameters phi are those of the posterior.

    Arguments:
        prior: p(z): a `Conditional`, or any module whose ``forward()`` returns a distribution with
            ``batch_shape == ()`` (``forward(context)`` where the batches have a context; with an attribute
            ``needs_posterior`` that is true, as `VampPrior` has, also ``posterior=``).
        likelihood: p(x|z): a module whose ``forward(context)`` maps ``(..., L)`` to a distribution with
            ``batch_shape == (...)``.
        posterior: q(z|x): a module whose ``forward(context)`` maps flattened data ``(..., D)`` to a distribution
            over z. A network that returns features instead is taken as the encoder of a posterior that follows
            from the prior's support: a diagonal Normal in unconstrained space, pushed through the bijection onto the
            support. None: the same, with the likelihood's own hidden layers in reverse as encoder. A posterior over
            the real space is pushed in the same way where the prior's support is bounded.
        size: N, the number of training data. `model` and `guide` then scale a minibatch of M by N/M, so that
            Pyro's SVI sees the ELBO of the whole data set.
        parameter_prior: A `ParameterPrior`, or a univariate distribution for the weight matrices of theta: the
            MAP criterion. Needs ``size``.
        context_features: C, the number of covariates in ``Batch.context``, which are concatenated to what prior,
            likelihood and posterior receive.
        transformed_data: Whether the data that the VAE sees are a transform of a table's columns, scaled or encoded,
            as those of an `Experiment` are. A data frame, which may be in other units, is then refused.

    Raises:
        InputError: Where the parts do not fit each other, a discrete prior comes without a posterior, or the
            prior's density does not integrate to 1 over the support that it declares.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_vae import Conditional, Fixed, mlp
        >>> vae = VAE(
        ...     prior=Conditional(dist.Normal, (8,), loc=Fixed(0.0), scale=Fixed(1.0)),
        ...     likelihood=Conditional(dist.Bernoulli, (64,), given=mlp(8, 100)),
        ...     posterior=Conditional(dist.Normal, (8,), given=mlp(64, 100)),
        ... )
        >>> vae.log_weights(torch.zeros(5, 64), num_particles=3).shape
        torch.Size([3, 5])
    """

    def __init__(
        self,
        prior: nn.Module,
        likelihood: nn.Module,
        posterior: nn.Module | None = None,
        *,
        size: int | None = None,
        parameter_prior: ParameterPrior | torch.distributions.Distribution | None = None,
        context_features: int = 0,
        transformed_data: bool = False,
    ) -> None:
        super().__init__()
        if size is not None and (not isinstance(size, int) or size < 1):
            raise InputError(f"VAE: `size` is the number of training data, a positive integer; got `{size!r}`.")
        if parameter_prior is not None and size is None:
            raise InputError("VAE: `parameter_prior` is weighed against the whole data set; pass size=N, its size.")
        if isinstance(parameter_prior, torch.distributions.Distribution):
            parameter_prior = ParameterPrior(parameter_prior)
        self.prior, self.likelihood = prior, likelihood
        self.transformed_data = transformed_data
        self.size, self.parameter_prior, self.context_features = size, parameter_prior, context_features
        covariates = [self._zeros(0)] if context_features else []
        p = call_once("prior", prior, *covariates, context_features=context_features, **self._handed(posterior))
        check_batch_shape("prior", p, (2,) if context_features else ())
        self.latent_shape = p.event_shape
        given = self._decoded(draw_two(p, prior), covariates)
        x_given_z = call_once("likelihood", likelihood, given, context_features=context_features)
        check_batch_shape("likelihood", x_given_z)
        self.event_shape = x_given_z.event_shape
        self.posterior = self._posterior(posterior, p)

    # ------------------------------------------------------------------ the Pyro programs

    def model(self, data: DataLike) -> Tensor:
        """The generative program p(z) p(x|z), with ``x`` observed, for Pyro's own inference.

        Sites ``z`` and ``x`` lie in the plate ``data`` (dim -1), scaled by N/M where ``size`` is set; a parameter
        prior is the factor ``parameter_prior``.

        Arguments:
            data: Shape ``(B, *event_shape)``, in any form that `Batch.of` takes.

        Returns:
            The value of ``x``.
        """
        self._register(self.theta)
        return self.model_of(self.check(data))

    def guide(self, data: DataLike) -> Tensor:
        """The inference program q(z|x), for Pyro's own inference; arguments as for `model`."""
        self._register(self.phi)
        return self.guide_of(self.check(data))

    @property
    def programs(self) -> Programs:
        """`model` and `guide` without registration in the param store."""
        return Programs(lambda data: self.model_of(self.check(data)), lambda data: self.guide_of(self.check(data)))

    def model_of(self, batch: Batch) -> Tensor:
        """The generative program of a ready batch, without registration in the param store; see `model`."""
        if self.parameter_prior is not None:
            pyro.factor("parameter_prior", self.log_parameter_prior())
        with self._plate(batch):
            z = pyro.sample("z", self.prior_given(batch))
            x_given_z, x = self.observed(z, batch)
            observed: Tensor = pyro.sample("x", x_given_z, obs=x)
        return observed

    def guide_of(self, batch: Batch) -> Tensor:
        """The inference program of a ready batch, without registration in the param store; see `guide`."""
        with self._plate(batch):
            z: Tensor = pyro.sample("z", self.posterior_given(batch))
        return z

    @contextmanager
    def _plate(self, batch: Batch) -> Iterator[None]:
        """The plate over the batch, scaled by N/M and by the data's weights."""
        with pyro.plate("data", batch.size, dim=-1), self.scaled(batch):
            yield

    # ------------------------------------------------------------------ densities of data in any form

    def decode(self, z: Tensor, batch: Tensor | Batch | None = None) -> TorchDistribution:
        """Returns p(x|z), computed in evaluation mode.

        Arguments:
            z: Shape ``(..., *latent_shape)``; ends in ``(..., B, *latent_shape)`` where ``batch`` is given.
            batch: The data whose context and offset apply.

        Returns:
            A distribution with ``batch_shape == (...)`` and the data's ``event_shape``.

        Raises:
            InputError: If z is no tensor of such a shape.
        """
        own = len(self.latent_shape)
        if not isinstance(z, Tensor) or tuple(z.shape[max(0, z.dim() - own) :]) != tuple(self.latent_shape):
            got = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else f"a `{type(z).__name__}`"
            raise InputError(f"VAE: decode needs a tensor z of shape (..., *{tuple(self.latent_shape)}); got {got}.")
        with evaluating(self):
            return self.likelihood_given(z, batch)

    def log_likelihood(self, z: Tensor, data: DataLike) -> Tensor:
        """Returns log p(x|z) over the observed cells, in nats.

        Arguments:
            z: Shape ``(..., B, *latent_shape)``.
            data: Shape ``(B, *event_shape)``, in any form that `Batch.of` takes.

        Returns:
            Shape ``(..., B)``.
        """
        return self.log_likelihood_of(z, self.check(data))

    def log_joint(self, z: Tensor, data: DataLike) -> Tensor:
        """Returns log p(x, z) over the observed cells, in nats; arguments and shape as for `log_likelihood`."""
        return self.log_joint_of(z, self.check(data))

    # ------------------------------------------------------------------ what a trained model is used for

    @torch.no_grad()
    def generate(self, n: int, context: Any = None, offset: Any = None) -> Tensor:
        """Returns n draws of x from the model, shape ``(n, *event_shape)``, computed in evaluation mode.

        Arguments:
            n: Number of draws.
            context: Tensor or array of shape ``(n, C)``, where the model has one.
            offset: The same, of shape ``(n, 1)`` or ``(n, D)``, where a parameter of the likelihood takes one.
        """
        given = Batch.of(Batch(torch.empty(n), context=context, offset=offset), "VAE").to(self.device, self.dtype)
        shape = (n, 0) if given.context is None else tuple(given.context.shape)
        if shape != (n, self.context_features):
            raise InputError(
                f"VAE: generate needs a context of shape {(n, self.context_features)}, one row a draw; got {shape}."
            )
        with evaluating(self):
            p = self.prior_given(given)
            z = p.sample((n,)) if p.batch_shape == () else p.sample()
            return self.likelihood_given(z, given).sample()

    @torch.no_grad()
    def reconstruct(self, data: DataLike, num_samples: int | None = None) -> Tensor:
        """Returns the data encoded and decoded, computed in evaluation mode.

        Arguments:
            data: Shape ``(B, *event_shape)``, in any form that `Batch.of` takes; observed cells must be finite.
            num_samples: None: the likelihood's mean (its mode where it has no mean) at the posterior's mean
                (its mode on a sphere), shape ``(B, *event_shape)``. S: that many draws of x for z drawn from
                q(z|x), shape ``(S, B, *event_shape)``.
        """
        batch = self.check(data)
        check_finite(batch, "reconstruct")
        with evaluating(self):
            q = self.posterior_given(batch)
            if num_samples is not None:
                return self.likelihood_given(q.sample((num_samples,)), batch).sample()
            return centre(self.likelihood_given(representative(q), batch))

    # ------------------------------------------------------------------ parameters

    def log_parameter_prior(self) -> Tensor:
        """Returns log p(theta) in nats; 0 without a parameter prior."""
        if self.parameter_prior is None:
            return torch.zeros((), device=self.device, dtype=self.dtype)
        return self.parameter_prior.log_prob(self.theta, self.free)

    def log_parameter_prior_per_datum(self) -> Tensor:
        """Returns log p(theta) / N in nats per datum; 0 without a parameter prior."""
        return self.log_parameter_prior() / (self.size or 1)

    # ------------------------------------------------------------------ checks

    def as_batch(self, data: DataLike, caller: str, name: str = "x") -> Batch:
        """Returns data as a `Batch` of tensors; see `pyro_vae.vae.inputs.batch_for`."""
        return batch_for(self, data, caller, name)

    def value_check(
        self, check_support: bool, unknown_labels: bool = False, names: CellNames | None = None
    ) -> ValueCheck:
        """Returns a check of every value of data; see `ValueCheck`."""
        return ValueCheck(self, check_support, unknown_labels, names)

    def check(self, data: DataLike) -> Batch:
        """Returns the data as a ready `Batch`; see `pyro_vae.vae.inputs.ready`.

        Every method with an argument ``data`` does this first; one with an argument ``batch`` takes what it returns.

        Raises:
            InputError: For a trailing shape that is not the likelihood's, an empty batch, or a context that the
                model was not declared with.
        """
        return ready(self, data)

    def _posterior(self, posterior: nn.Module | None, p: TorchDistribution) -> nn.Module:
        """The posterior as given, pushed onto the prior's support where it must be, or the one that follows from it."""
        width = self.event_shape.numel()
        if posterior is None:
            like = self._like()
            posterior = mirrored(self.likelihood, width + self.context_features).to(like.device, like.dtype)
        q = call_once("posterior", posterior, self._zeros(width), context_features=self.context_features)
        if isinstance(q, Tensor):
            posterior = derive_posterior(self.prior, posterior, self.context_features)
        else:
            posterior = onto_support(posterior, q, self.prior, p, self.context_features)
        q = call_once("posterior", posterior, self._zeros(width), context_features=self.context_features)
        check_batch_shape("posterior", q)
        if q.event_shape != self.latent_shape:
            raise InputError(
                f"VAE: the posterior's z has shape {tuple(q.event_shape)}, the prior's {tuple(self.latent_shape)}; "
                "declare both with the same event_shape."
            )
        check_blocks(p, q)
        check_supports(p, q, self.prior, posterior)
        return posterior

    def probe_batch(self) -> Batch:
        """Returns a batch of two zeros, with a context where the model has one."""
        context = torch.zeros(2, self.context_features) if self.context_features else None
        return self.blank(2, context)

    def blank(self, n: int, context: Tensor | None = None) -> Batch:
        """Returns a batch of n zeros; see `LatentVariableModel.blank`."""
        x = torch.zeros(n, *self.event_shape, device=self.device, dtype=self.dtype)
        return Batch(x, None if context is None else context.to(self.device, self.dtype))

    def _zeros(self, width: int) -> Tensor:
        return torch.zeros(2, width + self.context_features, device=self.device, dtype=self.dtype)

    def extra_repr(self) -> str:
        return f"latent_shape={tuple(self.latent_shape)}, event_shape={tuple(self.event_shape)}, size={self.size}"
