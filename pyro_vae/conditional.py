r"""Declares a distribution: a family whose parameters come from a network, are learned, or are fixed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform, identity_transform

from pyro_vae.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.errors import InputError, near_match
from pyro_vae.families import ALIASES, constraints_of, event_dim_of, is_discrete, parameters_of
from pyro_vae.sources import Fixed, Learned, Network, Source

_SQUARE = (
    constraints.lower_cholesky,
    constraints.positive_definite,
    constraints.positive_semidefinite,
    constraints.corr_cholesky,
)
_REPLACED: dict[type, type[TorchDistribution]] = {dist.ContinuousBernoulli: ContinuousBernoulli}


class Conditional(nn.Module):
    r"""A distribution whose parameters are functions of a context, free parameters or constants.

    ``forward(context)`` returns ``family(**parameters)`` with the declared ``event_shape`` and ``batch_shape ==
    context.shape[:-1]``; without a context, ``batch_shape == ()``. Parameters that are not named are `Network`
    where ``given`` is set and `Learned` otherwise. Of the parametrisations of one quantity (``logits`` and
    ``probs``; ``scale_tril``, ``covariance_matrix`` and ``precision_matrix``) the one that is named is used, else
    the first of those. Positive parameters are the exp of an unconstrained value, which overflows in float32
    above 88; ``Network(transform=constraints.softplus_positive)`` grows linearly instead.

    Arguments:
        family: A class of `pyro.distributions`, with ``arg_constraints`` and ``support``.
        event_shape: Shape of one draw, such as ``(784,)`` or ``(1, 28, 28)``.
        given: Network from a context of shape ``(..., C)`` to features ``(..., F)``.
        head: ``"linear"`` puts one ``Linear(F, n)`` behind ``given``; None means that ``given`` emits the n
            unconstrained parameters itself, parameter after parameter (for a convolutional decoder:
            n_parameters x channels maps, flattened).
        features: F, where neither ``given.out_features`` nor a last `Linear` in ``given`` tells it.
        **sources: `Network`, `Learned` or `Fixed` for each parameter of the family.

    Raises:
        InputError: For an unknown parameter, a source that the parameter's constraint does not allow, a size that
            must be declared, or an event shape that the family does not produce.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> prior = Conditional(dist.Normal, (20,), loc=Fixed(0.0), scale=Fixed(1.0))
        >>> prior().event_shape, prior().batch_shape
        (torch.Size([20]), torch.Size([]))
        >>> likelihood = Conditional(dist.Normal, (784,), given=torch.nn.Linear(20, 50), scale=Learned(0.1))
        >>> likelihood(torch.zeros(5, 20)).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        family: type[TorchDistribution],
        event_shape: Sequence[int],
        *,
        given: nn.Module | None = None,
        head: str | None = "linear",
        features: int | None = None,
        **sources: Source,
    ) -> None:
        super().__init__()
        if not (isinstance(family, type) and issubclass(family, torch.distributions.Distribution)):
            raise InputError(f"Conditional: `family` must be a class of pyro.distributions, got `{family!r}`.")
        if head not in ("linear", None):
            raise InputError(f'Conditional: `head` must be "linear" or None, got `{head!r}`.')
        self.family = _REPLACED.get(family, family)
        self.event_shape = torch.Size(_as_shape(event_shape))
        self.family_event_dim = event_dim_of(self.family)
        if len(self.event_shape) < self.family_event_dim:
            raise InputError(
                f"Conditional: an event of `{family.__name__}` has {self.family_event_dim} dimension(s), "
                f"got event_shape {tuple(self.event_shape)}."
            )
        self.sources = self._resolve(sources, has_network=given is not None)
        self._sizes: list[int] = []
        self._numbers: dict[str, Any] = {}
        self._transforms: dict[str, Transform] = {}
        self._raw_shapes: dict[str, torch.Size] = {}
        for name, source in self.sources.items():
            self._declare(name, source)
        if given is None and self._sizes:
            raise InputError(f"Conditional: a `Network` parameter of `{family.__name__}` needs given=, a network.")
        if given is not None and not self._sizes:
            raise InputError(
                f"Conditional: no parameter of `{family.__name__}` is a `Network`, so given= would never be used."
            )
        self._takes_offset = any(isinstance(s, Network) and s.offset for s in self.sources.values())
        self.given = given
        self.head: nn.Module | None = None
        if given is not None and head is not None:
            like = next(given.parameters(), torch.empty(()))
            width = _out_features(given) if features is None else features
            self.head = nn.Linear(width, sum(self._sizes), device=like.device, dtype=like.dtype)
        self._probe()

    def forward(self, context: Tensor | None = None, offset: Tensor | None = None) -> TorchDistribution:
        """Returns the distribution given ``context``.

        Arguments:
            context: Shape ``(..., C)``. May be left out where no parameter is a `Network`.
            offset: Added to the unconstrained value of each parameter declared ``Network(offset=True)``, shape
                ``(..., 1)`` or ``(..., D)``.

        Returns:
            A distribution with ``batch_shape == context.shape[:-1]`` and the declared ``event_shape``.
        """
        if self.given is None:
            return self._build(self._parameters_from(None, None), () if context is None else context.shape[:-1])
        if context is None:
            raise InputError(
                f"Conditional: `{self.family.__name__}` has a network, which needs a context; call it with one."
            )
        if offset is not None and not self._takes_offset:
            raise InputError(
                f"Conditional: the batch has an offset, but no parameter of `{self.family.__name__}` is declared "
                "Network(offset=True), so it would be ignored."
            )
        return self.distribution(self.network_output(context), offset)

    def network_output(self, context: Tensor) -> Tensor:
        """Returns the unconstrained values of all `Network` parameters, shape ``(..., n)``, for `distribution`."""
        if self.given is None:
            raise InputError(f"Conditional: no parameter of `{self.family.__name__}` is a `Network`.")
        # One batch dimension, whatever the context has: batch normalisation and convolutions tell them apart.
        raw: Tensor = self.given(context.reshape(-1, context.shape[-1]))
        if self.head is not None:
            raw = self.head(raw)
        if raw.shape[-1] != sum(self._sizes):
            raise InputError(
                f"Conditional: with head=None `given` must emit {sum(self._sizes)} values per datum "
                f"({len(self._sizes)} parameter(s) of `{self.family.__name__}`), got {raw.shape[-1]}."
            )
        return raw.reshape(*context.shape[:-1], raw.shape[-1])

    def distribution(self, raw: Tensor, offset: Tensor | None = None) -> TorchDistribution:
        """Returns the distribution whose `Network` parameters have the unconstrained values ``raw``.

        Arguments:
            raw: What `network_output` returns, or any tensor of that shape.
            offset: As for `forward`.
        """
        return self._build(self._parameters_from(raw, offset), raw.shape[:-1])

    def extra_repr(self) -> str:
        sources = ", ".join(f"{name}={source}" for name, source in self.sources.items())
        return f"{self.family.__name__}, event_shape={tuple(self.event_shape)}, {sources}"

    def _resolve(self, sources: dict[str, Source], has_network: bool) -> dict[str, Source]:
        """The source of every parameter that will be passed to the family."""
        family = self.family.__name__
        signature = parameters_of(self.family)
        for name, source in sources.items():
            if name not in signature:
                raise InputError(f"Conditional: `{family}` has no parameter `{name}`; {near_match(name, signature)}")
            if not isinstance(source, Network | Learned | Fixed):
                raise InputError(
                    f"Conditional: `{family}.{name}` must be Network(), Learned(...) or Fixed(...), "
                    f"got `{source!r}`; write {name}=Fixed({source!r}) for a constant."
                )
        shadowed: set[str] = set()
        for aliases in ALIASES:
            present = [name for name in aliases if name in signature]
            named = [name for name in present if name in sources]
            if len(named) > 1:
                raise InputError(f"Conditional: `{family}` takes only one of {', '.join(named)}.")
            shadowed.update(name for name in present if name != (named or present)[0])
        constrained = constraints_of(self.family)
        resolved: dict[str, Source] = {}
        for name, parameter in signature.items():
            if name in sources:
                resolved[name] = sources[name]
            elif name in shadowed:
                continue
            elif name in constrained:
                resolved[name] = Network() if has_network else Learned()
            elif parameter.default is inspect.Parameter.empty:
                raise InputError(
                    f"Conditional: `{family}.{name}` has no constraint of its own, so it can be neither learned nor "
                    f"output by a network; pass {name}=Fixed(...)."
                )
        return resolved

    def _declare(self, name: str, source: Source) -> None:
        """Registers what ``source`` needs: a slice of the head, a parameter or a buffer."""
        where = f"`{self.family.__name__}.{name}`"
        declared = constraints_of(self.family)
        constraint = declared.get(name, constraints.dependent)
        if isinstance(source, Fixed):
            value = source.value
            if isinstance(value, int | tuple) and (name not in declared or is_discrete(constraint)):
                self._numbers[name] = value  # such as Multinomial.total_count, which no tensor can be
                return
            try:
                tensor = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"Conditional: {where}: Fixed({value!r}) is not numeric: {error}.") from None
            if not tensor.dtype.is_floating_point:
                tensor = tensor.to(torch.get_default_dtype())
            _check_value(where, source, constraint, tensor)
            self.register_buffer(f"fixed_{name}", tensor.detach().clone())
            return
        transform = self._transform(where, name, source.transform, constraint)
        shape = self._shape(where, name, source, constraint)
        raw_shape = torch.Size(transform.inverse_shape(shape))
        self._transforms[name] = transform
        if isinstance(source, Network):
            self._raw_shapes[name] = raw_shape
            self._sizes.append(math.prod(raw_shape))
            return
        if source.init is None:
            raw = torch.zeros(raw_shape)
        else:
            init = torch.as_tensor(
                source.init, dtype=None if isinstance(source.init, Tensor) else torch.get_default_dtype()
            )
            init = init.expand(shape)
            _check_value(where, source, constraint, init)
            raw = transform.inv(init).detach().clone().contiguous()
            # Some inverses clamp: to 87 for a sigmoid's, where no gradient is left.
            if not bool((raw.abs() < (80 if transform is not identity_transform else math.inf)).all()):
                raise InputError(f"Conditional: {where}: {source} lies on the boundary of its constraint {constraint}.")
        self.register_parameter(f"learned_{name}", nn.Parameter(raw))

    def _transform(
        self, where: str, name: str, given: Transform | Constraint | None, constraint: Constraint
    ) -> Transform:
        if isinstance(given, Transform):
            return given
        if given is not None:
            constraint = given
        elif is_discrete(constraint):
            raise InputError(
                f"Conditional: {where} has an integer constraint, which no network can output and no optimizer can "
                f"move; pass {name}=Fixed(...)."
            )
        try:
            return transform_to(constraint)
        except NotImplementedError:
            raise InputError(
                f"Conditional: {where} has the constraint {constraint}, onto which no transform is known; "
                f"pass {name}=Fixed(...)."
            ) from None

    def _shape(self, where: str, name: str, source: Network | Learned, constraint: Constraint) -> torch.Size:
        """Shape of a network's or a learned parameter, in its constrained space."""
        d, rank = self.family_event_dim, constraint.event_dim
        batch, event = (
            self.event_shape[: len(self.event_shape) - d],
            self.event_shape[len(self.event_shape) - d :],
        )
        declared = None if source.shape is None else torch.Size(_as_shape(source.shape))
        if isinstance(source, Learned) and declared is None and source.init is not None:
            declared = torch.as_tensor(source.init).shape
        if declared is not None and len(declared) >= rank:
            return batch + declared if isinstance(source, Network) else declared
        if rank in (0, d):
            own = event[:rank]
        elif rank == 2 and d == 1 and any(constraint is square for square in _SQUARE):
            own = event + event
        else:
            raise InputError(
                f"Conditional: the size of {where} does not follow from event_shape {tuple(self.event_shape)}; "
                f"declare it: {name}={type(source).__name__}(shape=...) with {rank} dimension(s)."
            )
        return batch + own if declared is None else torch.broadcast_shapes(declared, own)

    def _parameters_from(self, raw: Tensor | None, offset: Tensor | None) -> dict[str, Any]:
        parameters: dict[str, Any] = dict(self._numbers)
        slices = iter(()) if raw is None else iter(raw.split(self._sizes, dim=-1))
        for name, source in self.sources.items():
            if isinstance(source, Network):
                value = next(slices)
                if source.offset and offset is not None:
                    value = value + offset
                value = value.reshape(value.shape[:-1] + self._raw_shapes[name])
                parameters[name] = self._transforms[name](value)
            elif isinstance(source, Learned):
                parameters[name] = self._transforms[name](getattr(self, f"learned_{name}"))
            elif name not in self._numbers:
                parameters[name] = getattr(self, f"fixed_{name}")
        return parameters

    def _build(self, parameters: dict[str, Any], batch_shape: Sequence[int]) -> TorchDistribution:
        built = self.family(**parameters)
        independent = self.event_shape[: len(self.event_shape) - self.family_event_dim]
        wanted = torch.Size(batch_shape) + independent
        if built.batch_shape != wanted:
            built = built.expand(wanted)
        return built.to_event(len(independent)) if independent else built

    @torch.no_grad()
    def _probe(self) -> None:
        """Builds the distribution once, at unconstrained zero, and checks its shapes."""
        like = next(self.parameters(), torch.empty(()))
        raw = torch.zeros(1, sum(self._sizes), device=like.device, dtype=like.dtype) if self._sizes else None
        try:
            with pyro.validation_enabled(True):
                built = self._build(self._parameters_from(raw, None), () if raw is None else (1,))
        except (ValueError, TypeError, RuntimeError, NotImplementedError, IndexError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"Conditional: `{self.family.__name__}` cannot be built for event_shape "
                f"{tuple(self.event_shape)}: {reason}"
            ) from error
        if built.event_shape != self.event_shape:
            raise InputError(
                f"Conditional: `{self.family.__name__}` has events of shape {tuple(built.event_shape)}, but "
                f"event_shape {tuple(self.event_shape)} is declared; declare what the family produces."
            )


def _as_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, int) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise InputError(f"Conditional: a shape is a tuple of positive integers, such as (20,); got `{shape!r}`.")
    return tuple(shape)


def _check_value(where: str, source: Source, constraint: Constraint, value: Tensor) -> None:
    if not bool(value.isfinite().all()):
        raise InputError(f"Conditional: {where}: {source} is not finite.")
    if constraints.is_dependent(constraint):
        return
    if value.dim() >= constraint.event_dim and not bool(constraint.check(value).all()):
        raise InputError(f"Conditional: {where}: {source} violates the constraint {constraint}.")


def _out_features(module: nn.Module) -> int:
    declared = getattr(module, "out_features", None)
    if isinstance(declared, int):
        return declared
    linear = [child for child in module.modules() if isinstance(child, nn.Linear)]
    if not linear:
        raise InputError(
            f"Conditional: the output size of `{type(module).__name__}` is unknown; pass features=, or give the "
            "module an attribute out_features."
        )
    return linear[-1].out_features
