r"""Declares a distribution: a family whose parameters come from a network, are learned, or are fixed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from pyro_vae.distributions.family import constraints_of, event_dim_of
from pyro_vae.distributions.protocol import declared_sizes, implied_constants
from pyro_vae.distributions.registry import family_in_place_of
from pyro_vae.distributions.statistics import Statistics
from pyro_vae.errors import InputError
from pyro_vae.networks.sizes import out_features
from pyro_vae.runtime.precision import network_output
from pyro_vae.vae.parameters import as_shape, constant, initial, is_number, resolve, shape_for, transform_for
from pyro_vae.vae.sources import Fixed, Learned, Network, Source
from pyro_vae.vae.start import start


class Conditional(nn.Module):
    r"""A distribution whose parameters are functions of a context, free parameters or constants.

    ``forward(context)`` returns ``family(**parameters)`` with the declared ``event_shape`` and ``batch_shape ==
    context.shape[:-1]``; without a context, ``batch_shape == ()``. Parameters that are not named are `Network`
    where ``given`` is set and `Learned` otherwise. If a quantity has several parametrisations (``logits`` and
    ``probs``; ``scale_tril``, ``covariance_matrix`` and ``precision_matrix``), the one that is named is used, else
    the first. Positive parameters are the exp of an unconstrained value, which overflows in float32
    above 88; ``Network(transform=constraints.softplus_positive)`` grows linearly instead.

    `pyro_vae.vae.families.classify` finds the roles and the sources that a family allows. Your own family may declare
    the sizes of its parameters, as `DiscretizedLogisticMixture` does; for optional attributes of families see
    `pyro_vae.distributions.protocol`.

    Arguments:
        family: A class of `pyro.distributions`, with ``arg_constraints`` and ``support``; a class of
            `torch.distributions` is replaced by Pyro's of the same name.
        event_shape: Shape of one draw, such as ``(784,)`` or ``(1, 28, 28)``.
        given: Network from a context of shape ``(..., C)`` to features ``(..., F)``.
        head: ``"linear"`` puts one ``Linear(F, n)`` behind ``given``; None means that ``given`` emits the n
            unconstrained parameters itself, parameter after parameter (for a convolutional decoder:
            n_parameters x channels maps, flattened; if each cell declares a size K, K x channels maps).
        features: Number F of features; needed if neither ``given.out_features`` nor a last `Linear` in ``given``
            has it.
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
        self.family = family_in_place_of(family)
        self.event_shape = as_shape(event_shape)
        self.sources = resolve(self.family, sources, given is not None, self.event_shape)
        self.given, self.head = given, None
        self._declare_all()
        if given is None and self._sizes:
            raise InputError(f"Conditional: a `Network` parameter of `{family.__name__}` needs given=, a network.")
        if given is not None and not self._sizes:
            raise InputError(
                f"Conditional: no parameter of `{family.__name__}` is a `Network`, so given= would never be used."
            )
        self.takes_offset = any(isinstance(s, Network) and s.offset for s in self.sources.values())
        if given is not None and head is not None:
            like = next(given.parameters(), torch.empty(()))
            width = out_features(given) if features is None else features
            self.head = nn.Linear(width, sum(self._sizes), device=like.device, dtype=like.dtype)
        # Tells a head as it was drawn from one that was set or trained.
        drawn = None if self.head is None else self.head.bias.detach().clone()
        self.drawn_bias: Tensor | None
        self.register_buffer("drawn_bias", drawn, persistent=False)

    def forward(self, context: Tensor | None = None, offset: Tensor | None = None) -> TorchDistribution:
        """Returns the distribution given ``context``.

        Arguments:
            context: Input of the network, shape ``(..., C)``. May be left out if no parameter is a `Network`.
            offset: Tensor that is added to the unconstrained value of each parameter declared
                ``Network(offset=True)``, shape ``(..., 1)`` or ``(..., D)``.

        Returns:
            A distribution with ``batch_shape == context.shape[:-1]`` and the declared ``event_shape``.
        """
        if self.given is None:
            return self._build(self._parameters_from(None, None), () if context is None else context.shape[:-1])
        if context is None:
            raise InputError(
                f"Conditional: `{self.family.__name__}` has a network, which needs a context; call it with one."
            )
        if offset is not None and not self.takes_offset:
            raise InputError(
                f"Conditional: the batch has an offset, but no parameter of `{self.family.__name__}` is declared "
                "Network(offset=True), so it would be ignored."
            )
        return self.distribution(self.network_output(context), offset)

    def network_output(self, context: Tensor) -> Tensor:
        """Returns the unconstrained values of all `Network` parameters, shape ``(..., n)``, for `distribution`."""
        if self.given is None:
            raise InputError(f"Conditional: no parameter of `{self.family.__name__}` is a `Network`.")
        raw = network_output(self.given, context)
        if self.head is not None:
            raw = network_output(self.head, raw)
        if raw.shape[-1] != sum(self._sizes):
            raise InputError(
                f"Conditional: with head=None `given` must emit {sum(self._sizes)} values per datum "
                f"({len(self._sizes)} parameter(s) of `{self.family.__name__}`), got {raw.shape[-1]}."
            )
        return raw

    def distribution(self, raw: Tensor, offset: Tensor | None = None) -> TorchDistribution:
        """Returns the distribution whose `Network` parameters have the unconstrained values ``raw``.

        Arguments:
            raw: Result of `network_output`, or any tensor of that shape.
            offset: Offset, as in `forward`.
        """
        return self._build(self._parameters_from(raw, offset), raw.shape[:-1])

    def extra_repr(self) -> str:
        sources = ", ".join(f"{name}={source}" for name, source in self.sources.items())
        return f"{self.family.__name__}, event_shape={tuple(self.event_shape)}, {sources}"

    @property
    def network_sizes(self) -> dict[str, int]:
        """Number of network outputs of each `Network` parameter, in the order of the parameters."""
        return {name: math.prod(shape) for name, shape in self._raw_shapes.items()}

    @property
    def raw_shapes(self) -> dict[str, torch.Size]:
        """Shape of the unconstrained value of each `Network` parameter, in the order of the parameters."""
        return dict(self._raw_shapes)

    @property
    def transforms(self) -> dict[str, Transform]:
        """Transform from the unconstrained value to each parameter that is not fixed."""
        return dict(self._transforms)

    @property
    def constants(self) -> dict[str, Any]:
        """Value of each fixed parameter: a Python number or a tensor."""
        buffers = {name: value for name, value in self.named_buffers(recurse=False) if name.startswith("fixed_")}
        return {**self._numbers, **{name.removeprefix("fixed_"): value for name, value in buffers.items()}}

    def start_at(self, data: Statistics) -> None:
        """Puts a head and learned parameters that are as drawn at the location and scale of data; see `start`.

        Arguments:
            data: Statistics of training data, with cells of ``event_shape``.
        """
        start(self, data)

    def to_spec(self) -> dict[str, Any]:
        """Returns the entry of this declaration in an experiment file, without the network and learned values.

        Raises:
            InputError: For a transform or a constant that an experiment file cannot express.

        Example:
            >>> import pyro.distributions as dist
            >>> Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Learned(0.1)).to_spec()
            {'family': 'Normal', 'loc': 0.0, 'scale': {'learned': 0.1}}
        """
        implied = {name: Fixed(value) for name, value in implied_constants(self.family, self.event_shape).items()}
        said = {name: source for name, source in self.sources.items() if source != implied.get(name)}
        return {"family": self.family.__name__, **{name: source.to_spec() for name, source in said.items()}}

    def _declare_all(self) -> None:
        """Registers what the sources need; tries every event dimension if the family does not declare its own."""
        told, most = event_dim_of(self.family), len(self.event_shape)
        if told is not None and most < told:
            raise InputError(
                f"Conditional: an event of `{self.family.__name__}` has {told} dimension(s), "
                f"got event_shape {tuple(self.event_shape)}."
            )
        for d in range(most + 1) if told is None else (told,):
            self._parameters.clear()
            self._buffers.clear()
            self.family_event_dim = d
            self._sizes: list[int] = []
            self._numbers: dict[str, Any] = {}
            self._transforms: dict[str, Transform] = {}
            self._raw_shapes: dict[str, torch.Size] = {}
            try:
                # Constants first: a family's own sizes may depend on them.
                for name, source in sorted(self.sources.items(), key=lambda item: not isinstance(item[1], Fixed)):
                    self._declare(name, source)
                self._probe()
                return
            except InputError:
                if told is not None or d == most:
                    raise

    def _declare(self, name: str, source: Source) -> None:
        """Registers what ``source`` needs: a slice of the head, a parameter or a buffer."""
        where = f"`{self.family.__name__}.{name}`"
        declared = constraints_of(self.family, self.event_shape)
        constraint = declared.get(name, constraints.dependent)
        split = len(self.event_shape) - self.family_event_dim
        if isinstance(source, Fixed):
            if is_number(source, name in declared, constraint):
                self._numbers[name] = source.value
            else:
                event = self.event_shape[split:]
                self.register_buffer(f"fixed_{name}", constant(where, source, constraint, event))
            return
        transform = transform_for(where, source, constraint)
        sizes = declared_sizes(self.family, self._numbers)
        shape = shape_for(
            where, source, constraint, self.event_shape[:split], self.event_shape[split:], sizes.get(name)
        )
        raw_shape = torch.Size(transform.inverse_shape(shape))
        self._transforms[name] = transform
        if isinstance(source, Network):
            self._raw_shapes[name] = raw_shape
            self._sizes.append(math.prod(raw_shape))
        else:
            raw = initial(where, source, constraint, transform, shape, raw_shape)
            self.register_parameter(f"learned_{name}", nn.Parameter(raw))

    def _parameters_from(self, raw: Tensor | None, offset: Tensor | None) -> dict[str, Any]:
        parameters: dict[str, Any] = dict(self._numbers)
        slices = iter(()) if raw is None else iter(raw.split(self._sizes, dim=-1))
        for name, source in self.sources.items():
            if isinstance(source, Network):
                value = next(slices)
                if source.offset and offset is not None:
                    value = value + offset
                parameters[name] = self._transforms[name](self._arranged(name, value))
            elif isinstance(source, Learned):
                parameters[name] = self._transforms[name](getattr(self, f"learned_{name}"))
            elif name not in self._numbers:
                parameters[name] = getattr(self, f"fixed_{name}")
        return parameters

    def _arranged(self, name: str, value: Tensor) -> Tensor:
        """Returns a slice of the head's output in the shape of its parameter.

        If each cell has K values, because a size is declared, the slice has K maps of all cells, as a convolution's
        output has.
        """
        shape, cells = self._raw_shapes[name], len(self.event_shape)
        extra = len(shape) - cells if self.family_event_dim == 0 else 0
        if extra <= 0 or cells == 0:
            return value.reshape(value.shape[:-1] + shape)
        maps = value.reshape(value.shape[:-1] + shape[cells:] + shape[:cells])
        return maps.movedim(tuple(range(-extra - cells, -cells)), tuple(range(-extra, 0)))

    def as_emitted(self, name: str, value: Tensor) -> Tensor:
        """Returns unconstrained values of a parameter as the head emits them, shape ``(n,)``.

        Arguments:
            name: Name of the parameter.
            value: Unconstrained values; they broadcast to the parameter's.
        """
        shape, cells = self._raw_shapes[name], len(self.event_shape)
        value = value.expand(shape)
        extra = len(shape) - cells if self.family_event_dim == 0 else 0
        if extra > 0 and cells > 0:
            value = value.movedim(tuple(range(-extra, 0)), tuple(range(extra)))
        return value.reshape(-1)

    def _build(self, parameters: dict[str, Any], batch_shape: Sequence[int]) -> TorchDistribution:
        built = self.family(**parameters)
        independent = self.event_shape[: len(self.event_shape) - self.family_event_dim]
        wanted = torch.Size(batch_shape) + independent
        if built.batch_shape != wanted:
            built = built.expand(wanted)
        return built.to_event(len(independent)) if independent else built

    def _misfit(self) -> str | None:
        """Returns a message about a constant whose number of values does not fit the event's cells; None if all fit."""
        cells = self.event_shape[: len(self.event_shape) - self.family_event_dim]
        known = constraints_of(self.family, self.event_shape)
        for buffer, value in self.named_buffers(recurse=False):
            constraint = known.get(name := buffer.removeprefix("fixed_"), constraints.dependent)
            shape = value.shape[: value.dim() - (0 if constraints.is_dependent(constraint) else constraint.event_dim)]
            fits = all(size in (1, cell) for size, cell in zip(reversed(shape), reversed(cells), strict=False))
            if len(shape) > len(cells) or not fits:
                return f"`{name}` has {shape.numel()} values; give one, or one for each of the {cells.numel()} cells."
        return None

    @torch.no_grad()
    def _probe(self) -> None:
        """Builds the distribution once, at unconstrained zero, and checks its shapes."""
        like = next(self.parameters(), torch.empty(()))
        raw = torch.zeros(1, sum(self._sizes), device=like.device, dtype=like.dtype) if self._sizes else None
        try:
            with pyro.validation_enabled(True):
                built = self._build(self._parameters_from(raw, None), () if raw is None else (1,))
        except (ValueError, TypeError, RuntimeError, NotImplementedError, IndexError, AssertionError) as error:
            reason = self._misfit() or " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"Conditional: `{self.family.__name__}` cannot be built for event_shape "
                f"{tuple(self.event_shape)}: {reason}"
            ) from error
        if built.event_shape != self.event_shape:
            raise InputError(
                f"Conditional: `{self.family.__name__}` has events of shape {tuple(built.event_shape)}, but "
                f"event_shape {tuple(self.event_shape)} is declared; declare what the family produces."
            )
