r"""The interface of all inference algorithms: a sequence of losses, each with the parameters that it moves."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from pyro_vae.batch import Batch, DataLike
from pyro_vae.errors import InputError, near_match
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class Loss(NamedTuple):
    """The result of a phase.

    Attributes:
        value: Scalar to differentiate: the mean over the batch, in nats per datum. It contains -log p(theta)/N if the
            parameters have a prior and the phase moves them.
        bound: Detached lower bound on log p(x), mean over the batch, in nats per datum; None if there is none.
    """

    value: Tensor
    bound: Tensor | None = None


class Phase(NamedTuple):
    """One loss of an algorithm's step, and the parameters that its gradient moves.

    Attributes:
        compute: Function of the VAE, a ready batch and the carry of the previous phase (None for the first phase);
            returns the loss and its own carry.
        moves: Groups of parameters that move: ``"theta"`` (generative; ``"likelihood"`` for those of the likelihood
            alone), ``"phi"`` (inference) and ``"own"`` (the algorithm's).
    """

    compute: Callable[[LatentVariableModel, Batch, Any], tuple[Loss, Any]]
    moves: frozenset[str]


EVERYTHING = frozenset({"theta", "phi", "own"})


class Inference(nn.Module):
    r"""An inference algorithm: a sequence of losses, each with the parameters that it moves.

    An algorithm with one loss for all parameters implements `loss_of`. One with several losses overrides `phases`; the
    caller steps the optimizer after each phase, so a later phase uses the moved parameters. A phase passes its carry to
    the next phase. State from step to step is in buffers; the algorithm's own trainable values are parameters. `loss`
    and `losses` check data once; every phase trusts its batch, and uses the methods of
    `pyro_vae.vae.densities.Densities`.

    Example:
        >>> class NegativeELBO(Inference):
        ...     name = "negative-elbo"
        ...     def loss_of(self, vae, batch):
        ...         elbo = batch.mean(vae.log_weights_of(batch))
        ...         return Loss(-elbo - vae.log_parameter_prior_per_datum(), elbo.detach())

    Experiment files can use its short name after it is added to the registry:
    ``pyro_vae.inference.ALGORITHMS["negative-elbo"] = NegativeELBO``.

    Attributes:
        name: The short name of the algorithm in experiment files.
        needs: Requirements on the VAE: functions of `pyro_vae.inference.requirements`, called by `check`.
        trains_posterior: Whether phi is trained so that q(z|x) approximates the posterior. If not, the ELBO and
            importance sampling by q give no information about the model.
        trains_prior: Whether the prior's parameters move.
        trains_globals: Whether it trains a posterior over latents that all data share; such a loss is a function of
            log weights, or of log joint densities and log q, whose global part is the same for every particle.
        has_bound: Whether a phase reports a lower bound on log p(x).
        takes_unknown_labels: Whether rows of nan in the context mean unknown labels.
    """

    name: ClassVar[str] = "unnamed"
    needs: ClassVar[tuple[Callable[[str, LatentVariableModel], None], ...]] = ()
    trains_posterior: ClassVar[bool] = True
    trains_prior: ClassVar[bool] = True
    trains_globals: ClassVar[bool] = False
    has_bound: ClassVar[bool] = True
    takes_unknown_labels: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()

    def __init_subclass__(cls, **options: Any) -> None:
        """Has the constructor name an argument that it does not have, with those that it has."""
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _naming_arguments(cls.__init__)  # type: ignore[method-assign]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of one step, in order."""
        return (Phase(self._whole, EVERYTHING),)

    def loss(self, vae: LatentVariableModel, data: DataLike) -> Loss:
        """Returns the one loss of an algorithm of one phase.

        Arguments:
            vae: The VAE.
            data: Shape ``(B, *event_shape)``, in any form that `Batch.of` takes.
        """
        return self.loss_of(vae, vae.check(data))

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns the loss of a ready batch. An algorithm of one phase implements this method.

        An algorithm that overrides `loss` instead gets ready batches there.

        Arguments:
            vae: The VAE.
            batch: As `VAE.check` returns it.
        """
        if type(self).loss is Inference.loss:
            raise NotImplementedError(f"{type(self).__name__} implements neither `loss_of` nor `phases`")
        return self.loss(vae, batch)

    def _whole(self, vae: LatentVariableModel, batch: Batch, carry: Any) -> tuple[Loss, Any]:
        return self.loss_of(vae, batch), None

    def losses(self, vae: LatentVariableModel, data: DataLike) -> Iterator[Loss]:
        """Yields the loss of each phase; the caller steps the optimizer before it asks for the next loss.

        Arguments:
            vae: The VAE.
            data: Shape ``(B, *event_shape)``, in any form that `Batch.of` takes.

        Example:
            >>> import pyro.distributions as dist, torch
            >>> from pyro_vae import VAE, Conditional, Fixed, mlp
            >>> from pyro_vae.inference import AEVB
            >>> prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
            >>> vae = VAE(prior, Conditional(dist.Bernoulli, (6,), given=mlp(2, 10)))
            >>> for loss in AEVB().losses(vae, torch.ones(4, 6)):
            ...     loss.value.backward()
        """
        batch = vae.check(data)
        carry = None
        for phase in self.phases:
            loss, carry = phase.compute(vae, batch, carry)
            if not isinstance(loss, Loss) or loss.value.dim() != 0:
                raise InputError(
                    f"{type(self).__name__}: a phase must return Loss(value, bound) with a scalar value (the mean over "
                    f"the batch, nats per datum); it returned {_described(loss)}."
                )
            yield loss

    @property
    def trains_encoder(self) -> bool:
        """Whether phi is trained at all. If not, the encoder's output has no meaning."""
        return any("phi" in phase.moves for phase in self.phases)

    @property
    def warming_up(self) -> bool:
        """Whether the objective still changes with the steps; early stopping and keeping the best wait for its end."""
        return False

    def check(self, vae: LatentVariableModel) -> None:
        """Raises an `InputError` if the algorithm cannot train this VAE; called before the first step."""
        if vae.has_globals and not self.trains_globals:
            raise InputError(
                f"{type(self).__name__}: the model has latents that all data share, and this algorithm trains no "
                "posterior over them; use aevb, stl, iwae, miwae, piwae, ciwae, renyi, beta-vae or analytic-kl."
            )
        for need in self.needs:
            need(type(self).__name__, vae)

    def visit(self, rows: Tensor | None) -> None:
        """Called by `fit` before each step with the minibatch's positions in the data. By default it does nothing.

        Only phases that move nothing may use what it stores: other phases are captured once, and then ignore it.

        Arguments:
            rows: Positions, shape ``(B,)``; None if they are unknown, and after the last step.
        """

    def remark(self) -> str:
        """Returns a remark that must stand beside the numbers of a finished run; empty if there is none."""
        return ""

    def scores(self, vae: LatentVariableModel, data: Batch) -> dict[str, float]:
        """Returns additional scores of held-out data by name, such as a classifier's accuracy; by default none.

        Arguments:
            vae: VAE that this algorithm has trained.
            data: Held-out data.
        """
        return {}

    def extra_repr(self) -> str:
        arguments = [name for name in inspect.signature(type(self)).parameters if hasattr(self, name)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in arguments)

    def moved(self, vae: LatentVariableModel, phase: Phase) -> dict[str, nn.Parameter]:
        """Returns the trainable parameters that a phase moves, by name."""
        theta = vae.theta
        groups: dict[str, dict[str, nn.Parameter]] = {
            "theta": theta,
            "likelihood": {name: p for name, p in theta.items() if not name.startswith("prior.")},
            "phi": vae.phi,
            "own": {f"inference.{name}": p for name, p in self.named_parameters()},
        }
        return {
            name: parameter
            for group in sorted(phase.moves)
            for name, parameter in groups[group].items()
            if parameter.requires_grad
        }


def _naming_arguments(construct: Callable[..., None]) -> Callable[..., None]:
    """Returns a constructor that raises an `InputError` for an argument that it does not have."""
    parameters = inspect.signature(construct).parameters
    names = list(parameters)[1:]
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())

    @functools.wraps(construct)
    def checked(self: Inference, *arguments: Any, **named: Any) -> None:
        for name in named:
            if name not in names and not takes_all:
                hint = near_match(name, names) if names else "it has none."
                raise InputError(f"{type(self).__name__}: has no argument `{name}`; {hint}")
        construct(self, *arguments, **named)

    return checked


Inference.__init__ = _naming_arguments(Inference.__init__)  # type: ignore[method-assign]


def _described(loss: object) -> str:
    return f"a value of shape {tuple(loss.value.shape)}" if isinstance(loss, Loss) else f"a `{type(loss).__name__}`"


def check_count(algorithm: str, name: str, value: int) -> int:
    """Returns ``value``; raises an `InputError` if it is not a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{algorithm}: `{name}` is a positive integer, got `{value!r}`.")
    return value


def check_number(algorithm: str, name: str, value: float, low: float, high: float = float("inf")) -> float:
    """Returns ``value``; raises an `InputError` if it is not a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        limits = f"of at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise InputError(f"{algorithm}: `{name}` is a number {limits}, got `{value!r}`.")
    return value


def check_choice(algorithm: str, name: str, value: str, choices: tuple[str, ...]) -> str:
    """Returns ``value``; raises an `InputError` if it is none of ``choices``."""
    if value not in choices:
        listed = ", ".join(f'"{choice}"' for choice in choices)
        raise InputError(f"{algorithm}: `{name}` is one of {listed}; got `{value!r}`.")
    return value


def weighted(*terms: tuple[float, Tensor]) -> Tensor | float:
    """Returns the weighted sum of terms; 0 without any.

    A term of weight 0 is left out, so that what appears in no other term has no gradient, and `pyro_vae.fit` says so.
    """
    return sum((weight * term for weight, term in terms if weight), 0.0)


def surrogate(value: Tensor, gradient_of: Tensor) -> Tensor:
    """Returns ``value``, with the gradient of another scalar."""
    return value.detach() + gradient_of - gradient_of.detach()
