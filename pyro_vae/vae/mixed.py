r"""A likelihood for tables with columns of different kinds: numbers, counts, yes or no, levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.distributions.columns import Columns
from pyro_vae.distributions.family import event_dim_of
from pyro_vae.distributions.statistics import Statistics
from pyro_vae.distributions.support import cells_of
from pyro_vae.errors import InputError
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.parameters import resolve
from pyro_vae.vae.part import start_at
from pyro_vae.vae.sources import Learned, Network, Source
from pyro_vae.vae.trunk import Trunk


class Column:
    r"""The declaration of one column of `Mixed`: a family of single cells, with sources as in `Conditional`.

    Arguments:
        family: A class of `pyro.distributions` whose events are single cells.
        **sources: `Network`, `Learned` or `Fixed` for each parameter of one cell.

    Example:
        >>> import pyro.distributions as dist
        >>> Column(dist.Categorical, logits=Network((4,)))
        Column(Categorical, logits=Network(shape=(4,), transform=None, offset=False))
    """

    def __init__(self, family: type[TorchDistribution], **sources: Source) -> None:
        self.family, self.sources = family, sources

    def like(self, other: Column) -> bool:
        """Whether two columns are declared alike, so that one linear layer serves both."""
        return (
            self.family is other.family
            and self.sources.keys() == other.sources.keys()
            and all(_equal(source, other.sources[name]) for name, source in self.sources.items())
        )

    def has_network(self, unnamed: bool) -> bool:
        """Whether a network outputs any parameter; ``unnamed`` says whether it outputs undeclared ones."""
        resolved = resolve(self.family, self.sources, unnamed, (1,))
        return any(isinstance(source, Network) for source in resolved.values())

    @property
    def takes_offset(self) -> bool:
        """Whether a parameter is declared ``Network(offset=True)``."""
        return any(isinstance(source, Network) and source.offset for source in self.sources.values())

    def to_spec(self) -> dict[str, Any]:
        """Returns its entry in an experiment file."""
        return {"family": self.family.__name__, **{name: source.to_spec() for name, source in self.sources.items()}}

    def times(self, n: int) -> dict[str, Source]:
        """Returns the sources of n such columns; each column has its own learned parameters."""
        return {name: _repeated(source, n) for name, source in self.sources.items()}

    def __repr__(self) -> str:
        return ", ".join((f"Column({self.family.__name__}", *(f"{k}={v}" for k, v in self.sources.items()))) + ")"


class Mixed(Trunk):
    r"""A likelihood whose columns have families of their own, given one network.

    .. math:: p(x|z) = \prod_d p_d(x_d | z)

    It is a density with respect to the product of counting measures (for discrete columns) and Lebesgue measures (for
    the others): its sum and integral over all columns is 1. Columns that are declared alike share one linear layer on
    the network's features, so that 100 Normal columns cost one product of matrices.

    Arguments:
        columns: Declaration of each column, a `Column` or a family alone; by name, or in a sequence without names.
        given: Network from a context of shape ``(..., C)`` to features ``(..., F)``; None where no parameter of any
            column is a `Network`.

    Attributes:
        columns: Declarations of the columns, by name (``"0"``, ``"1"``, ... for columns without names).
        column_names: Names of the columns, which order a data frame's columns; None for columns without names.
        event_shape: ``(D,)``.

    Raises:
        InputError: If there is no column, or if a column cannot be built or has events of more than one cell.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_vae import mlp
        >>> region = Column(dist.Categorical, logits=Network((4,)))
        >>> likelihood = Mixed({"age": dist.Normal, "visits": dist.Poisson, "region": region}, given=mlp(2, 10))
        >>> likelihood(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        columns: Mapping[str, Column | type[TorchDistribution]] | Sequence[Column | type[TorchDistribution]],
        *,
        given: nn.Module | None = None,
    ) -> None:
        super().__init__(given)
        named = columns if isinstance(columns, Mapping) else {str(i): each for i, each in enumerate(columns)}
        if not named:
            raise InputError('Mixed: expected at least one column, such as {"age": dist.Normal}, got none.')
        self.columns = {name: each if isinstance(each, Column) else Column(each) for name, each in named.items()}
        self.column_names = tuple(self.columns) if isinstance(columns, Mapping) else None
        self.takes_offset = any(column.takes_offset for column in self.columns.values())
        self.event_shape = torch.Size((len(self.columns),))
        self._members = _alike(self.columns)
        self.groups = nn.ModuleList(self._group(list(names)) for names in self._members)
        self.like_trunk(*self.groups)
        order = {name: index for index, name in enumerate(self.columns)}
        for i, names in enumerate(self._members):
            self.register_buffer(f"index_{i}", torch.tensor([order[name] for name in names]), persistent=False)

    def forward(self, context: Tensor | None = None, offset: Tensor | None = None) -> Columns:
        """Returns p(x|z).

        Arguments:
            context: Input of the network, shape ``(..., C)``.
            offset: Tensor that is added to the unconstrained value of each parameter declared
                ``Network(offset=True)``, shape ``(..., 1)`` or ``(..., D)``.

        Returns:
            A distribution with ``batch_shape == context.shape[:-1]`` and events of shape ``(D,)``.
        """
        if offset is not None and not self.takes_offset:
            raise InputError(
                "Mixed: the batch has an offset, but no parameter of any column is declared Network(offset=True), so "
                "it would be ignored."
            )
        features = context if self.given is None else self.features(context)
        parts: dict[Tensor, TorchDistribution] = {}
        for i, (names, group) in enumerate(zip(self._members, self.groups, strict=True)):
            index = getattr(self, f"index_{i}")
            own = offset if self.columns[names[0]].takes_offset else None
            if own is not None and own.shape[-1] > 1:
                own = own[..., index]
            parts[index] = cells_of(group(features, own))
        return Columns(parts, tuple(self.columns))

    def start_at(self, data: Statistics) -> None:
        """Puts every column at the location and scale of its data; see `Conditional.start_at`.

        Arguments:
            data: Statistics of training data, with events of shape ``(D,)``.
        """
        for i, group in enumerate(self.groups):
            start_at(group, data.select(getattr(self, f"index_{i}")))

    def to_spec(self) -> dict[str, Any]:
        """Returns its entry in an experiment file, without the network.

        Raises:
            InputError: For a transform or a constant that an experiment file cannot express.

        Example:
            >>> import pyro.distributions as dist
            >>> from pyro_vae import Fixed
            >>> Mixed({"age": Column(dist.Normal, loc=Fixed(0.0), scale=Learned())}).to_spec()
            {'mixed': {'age': {'family': 'Normal', 'loc': 0.0, 'scale': 'learned'}}}
        """
        return {"mixed": {name: column.to_spec() for name, column in self.columns.items()}}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}: {column.family.__name__}" for name, column in self.columns.items())

    def _group(self, names: list[str]) -> Conditional:
        """Returns one `Conditional` for columns that are declared alike."""
        column = self.columns[names[0]]
        try:
            given = self.head_network() if column.has_network(self.given is not None) else None
            one: dict[str, Any] = column.times(1)
            if event_dim_of(column.family) not in (0, None):
                raise InputError(
                    f"`{column.family.__name__}` has events of several cells, and a column is one cell; use a family "
                    "of single cells, such as Normal, Poisson, Bernoulli or Categorical."
                )
            Conditional(column.family, (1,), given=given, **one)  # refuses a constant for several columns
            several: dict[str, Any] = column.times(len(names))
            given = self.head_network() if given is not None else None
            return Conditional(column.family, (len(names),), given=given, **several)
        except InputError as error:
            raise InputError(f"Mixed: column `{names[0]}`: {error}") from None


def _alike(columns: Mapping[str, Column]) -> tuple[tuple[str, ...], ...]:
    """Returns the names of the columns, in groups of columns that are declared alike."""
    groups: list[list[str]] = []
    for name, column in columns.items():
        group = next((group for group in groups if columns[group[0]].like(column)), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return tuple(tuple(group) for group in groups)


def _equal(one: Source, other: Source) -> bool:
    """Whether two sources are equal, also where they have tensors."""
    if type(one) is not type(other):
        return False
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            if not (isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)):
                return False
        elif a != b:
            return False
    return True


def _repeated(source: Source, n: int) -> Source:
    """Returns the source of n parameters, each declared as by ``source``."""
    if not isinstance(source, Learned) or (source.init is None and source.shape is None):
        return source
    own = torch.as_tensor(source.init).shape if source.shape is None else source.shape
    return replace(source, shape=(n, *own))
