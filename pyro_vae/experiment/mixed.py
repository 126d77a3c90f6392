r"""A likelihood for each column of a table: ``{mixed: {age: Normal, visits: Poisson, region: {Categorical: 4}}}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Discriminator, Tag, model_validator
from torch import nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_vae.datasets.cells import is_number, not_numbers
from pyro_vae.datasets.description import Content
from pyro_vae.distributions.registry import FAMILIES
from pyro_vae.distributions.support import is_discrete
from pyro_vae.errors import InputError, near_match
from pyro_vae.experiment.distribution import DistributionSpec
from pyro_vae.experiment.encoder_input import EncoderInput
from pyro_vae.experiment.network import MOST
from pyro_vae.experiment.place import Part, Place
from pyro_vae.experiment.tagged import Tagged
from pyro_vae.vae.mixed import Column, Mixed

# Families with one parameter that has an entry for each level.
_OF_LEVELS = ("Categorical",)
# A column with more distinct words than this holds names or row numbers, not levels.
_MOST_LEVELS = 50
# Counts with a mean above this are modelled by a Normal.
_LARGE_COUNT = 30.0
# Counts are Poisson if variance / mean is between these; below they are underdispersed, above overdispersed.
_UNDER, _OVER = 0.5, 1.5
# Underdispersed whole numbers with at most this many distinct values are levels.
_FEW = 10


class ColumnSpec(DistributionSpec):
    """The family of a column with a source for each named parameter; ``{Categorical: 4}`` has four levels."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, dict) and "family" not in value and len(value) == 1:
            ((family, number),) = value.items()
            if family in _OF_LEVELS and type(number) is int and 1 < number <= MOST:
                return {"family": family, "logits": {"network": [number]}}
            raise ValueError(
                f"expected a family such as Normal, {{family: Normal, scale: learned}} or {{Categorical: 4}} with "
                f"two to {MOST:,} levels, got {value!r}"
            )
        return {"family": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _no_network(self) -> ColumnSpec:
        for key in Part.model_fields:
            if getattr(self, key) is not None:
                raise ValueError(f"`{key}` is no key of a column; write it beside `mixed`")
        return self

    @property
    def lacks_levels(self) -> bool:
        """Whether the number of levels must still be read from the data."""
        return self.family in _OF_LEVELS and not self.model_extra

    def with_levels(self, number: int) -> ColumnSpec:
        """Returns the declaration with so many levels."""
        return ColumnSpec.model_validate({self.family: max(number, 2)})

    def column(self) -> Column:
        """Returns the `Column`.

        Raises:
            InputError: If the number of levels is unknown.
        """
        if self.lacks_levels:
            raise InputError(f"`{self.family}` needs the number of its levels; write {{{self.family}: 4}}.")
        sources: dict[str, Any] = self.sources()
        return Column(self.family_class, **sources)

    def column_support(self) -> Constraint:
        """Returns the support of a cell; a dependent constraint if it depends on a network."""
        declared = getattr(self.family_class, "support", constraints.dependent)
        if isinstance(declared, Constraint) and not constraints.is_dependent(declared):
            return declared
        with torch.random.fork_rng():
            built = Mixed({"": self.column()}, given=nn.Linear(1, 1))(torch.zeros(1, 1)).support.supports[0]
        return built if is_discrete(built) else constraints.dependent


class MixedSpec(Tagged):
    """A family for each column of a table, or ``auto`` to choose by content; see `pyro_vae.Mixed`.

    ``auto`` chooses `Categorical` for words (`Bernoulli` for two levels) and `Bernoulli` for {0, 1}. Whole numbers
    from 0 with a mean below 30 are counts: `NegativeBinomial` if the variance is above 1.5 times the mean; if it is
    below half of the mean, `Categorical` for at most ten values, else `Normal`; otherwise `Poisson`. For all other
    columns it chooses `Normal` with a learned scale. The experiment file in the run folder has its choices.
    """

    tag: ClassVar[str] = "mixed"

    columns: Annotated[
        Annotated[dict[str, ColumnSpec], Tag("named")] | Annotated[Literal["auto"], Tag("auto")],
        Discriminator(lambda columns: "auto" if columns == "auto" else "named"),
    ] = "auto"

    @classmethod
    def shorthand(cls, content: Any) -> dict[str, Any]:
        """Returns the fields for the short form ``{mixed: auto}``."""
        return {"columns": content} if content == "auto" else super().shorthand(content)

    @classmethod
    def expected(cls) -> str:
        """Returns the expected value of the key, for an error."""
        return "`auto`, or a family for each column: {age: Normal, ...}"

    @classmethod
    def fields_of(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the fields; the file has the columns by name."""
        return {"columns": {str(name): column for name, column in content.items()} or "auto"}

    @classmethod
    def content_of(cls, fields: dict[str, Any]) -> Any:
        """Returns the value of the key in a file: the columns by name, or ``auto``."""
        columns = fields["columns"]
        if not isinstance(columns, dict):
            return columns
        return {name: {k: v for k, v in column.items() if v is not None} for name, column in columns.items()}

    @classmethod
    def content_schema(cls, properties: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON schema of the key's value: ``auto``, or a family for each column."""
        number = {"type": "object", "properties": {name: {"type": "integer"} for name in _OF_LEVELS}}
        column = {"anyOf": [{"type": "string", "enum": sorted(FAMILIES)}, number, {"type": "object"}]}
        names = {"type": "object", "additionalProperties": column}
        forms = [{"enum": ["auto", None]}, names]
        return {"type": ["object", "string", "null"], "anyOf": forms, "additionalProperties": True}

    @model_validator(mode="after")
    def _buildable(self) -> MixedSpec:
        if self.columns == "auto":
            return self
        for name, spec in self.columns.items():
            if not spec.lacks_levels:
                try:
                    with torch.random.fork_rng():
                        Mixed({name: spec.column()}, given=nn.Linear(1, 1))
                except InputError as error:
                    raise ValueError(" ".join(str(error).split())) from None
        return self

    @property
    def title(self) -> str:
        if isinstance(self.columns, str):
            return "mixed"
        return f"mixed ({', '.join(dict.fromkeys(spec.family for spec in self.columns.values()))})"

    @property
    def supports(self) -> Mapping[str, Constraint]:
        """The support of each column, in the order in which the table's columns are modelled.

        Raises:
            InputError: If the families are not chosen yet; see `resolved`.
        """
        return {name: spec.column_support() for name, spec in self._named().items()}

    def data_of(self, cells: int) -> EncoderInput:
        named = self._named()
        levels = [spec.family in _OF_LEVELS for spec in named.values()]
        return EncoderInput.of_columns(list(self.supports.values()), list(named), levels)

    def resolved(self, contents: Sequence[Content]) -> MixedSpec:
        """Returns the likelihood with the families of ``auto`` and all numbers of levels chosen from the data.

        Arguments:
            contents: Descriptions of the modelled columns, from `pyro_vae.datasets.describe`.

        Raises:
            InputError: If the table lacks a column, a column has no family, or no family can be chosen for a column.
        """
        found = {content.name: content for content in contents}
        if isinstance(self.columns, str):
            return self.model_copy(update={"columns": {name: chosen(content) for name, content in found.items()}})
        for name in self.columns:
            if name not in found:
                raise InputError(f"mixed: the table has no column `{name}` to model; {near_match(name, found)}")
        for name in found:
            if name not in self.columns:
                raise InputError(
                    f"mixed: column `{name}` of the table has no family; give it one, name it in `context`, or drop it."
                )
        columns = {
            name: spec.with_levels(found[name].num_codes) if spec.lacks_levels else spec
            for name, spec in self.columns.items()
        }
        return self.model_copy(update={"columns": columns})

    def build_at(self, place: Place) -> nn.Module:
        """Returns the module; see `Part.build_at`."""
        if place.role != "likelihood":
            raise InputError("`mixed` is a likelihood of tables; use a family, a mixture or a flow here.")
        named = self._named()
        if place.cells != len(named):
            raise InputError(f"mixed: declares {len(named)} columns, but the data have {place.cells}.")
        columns = {name: spec.column() for name, spec in named.items()}
        given, _ = place.trunk(self.network)
        return Mixed(columns, given=given)

    def _named(self) -> Mapping[str, ColumnSpec]:
        if isinstance(self.columns, str):
            raise InputError("mixed: `auto` chooses by the data, which are not read yet; call `Experiment.resolved`.")
        return self.columns


def chosen(content: Content) -> ColumnSpec:
    """Returns the family that ``auto`` chooses for a column.

    Raises:
        InputError: For a column of words with more than 50 levels.
    """
    whole = content.whole and content.low >= 0
    if content.distinct > _MOST_LEVELS and content.levels is not None:
        words = [str(level) for level in content.levels if not is_number(level)]
        advice = not_numbers(words, content.distinct - len(words)) if words else None
        if advice is not None:
            raise InputError(f"mixed: column `{content.name}` holds `{words[0]}` among numbers: {advice}.")
        raise InputError(
            f"mixed: column `{content.name}` holds {content.distinct} different words, such as `{words[0]}`, too many "
            f"for levels ({_MOST_LEVELS} at most); drop the column if it names rows, such as an identifier or a date, "
            "or write fewer levels."
        )
    if content.levels is not None or (whole and content.high <= 1):
        levels = content.num_codes
        return ColumnSpec(family="Bernoulli") if levels <= 2 else ColumnSpec.model_validate({"Categorical": levels})
    ratio = content.variance / content.mean if content.mean > 0 else 0.0
    if not whole or content.mean >= _LARGE_COUNT or (ratio < _UNDER and content.distinct > _FEW):
        return ColumnSpec.model_validate({"family": "Normal", "scale": "learned"})
    if ratio < _UNDER:
        return ColumnSpec.model_validate({"Categorical": max(content.num_codes, 2)})
    if ratio > _OVER:
        return ColumnSpec.model_validate({"family": "NegativeBinomial", "total_count": "learned"})
    return ColumnSpec(family="Poisson")
