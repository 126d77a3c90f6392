r"""The place of a part in a VAE: the input that it receives, and the shape of its draws."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from torch import nn
from torch.distributions.constraints import Constraint

from pyro_vae.errors import InputError
from pyro_vae.experiment.choices import Strict
from pyro_vae.experiment.encoder_input import EncoderInput
from pyro_vae.experiment.network import NetworkSpec


def check_declared(name: str, declared: int | None, found: int) -> None:
    """Raises an `InputError` if the data do not have the size that an experiment declares.

    Arguments:
        name: Name of the size: ``"cells"`` or ``"covariates"``.
        declared: Size in the experiment; None if it declares none.
        found: Size of the data.
    """
    if declared not in (None, found):
        raise InputError(
            f"{name}: the experiment is for data with {declared} {name}, but these have {found}; name its data, such "
            f"as data: people.csv, or leave `{name}` out."
        )


@dataclass(frozen=True)
class Place:
    """The place of a part in a VAE.

    Attributes:
        role: Part of the VAE, or ``layer`` for a layer of a hierarchy.
        event_shape: Shape of one draw.
        in_features: Size of the input of its network: latents and covariates for a likelihood, cells and covariates
            for a posterior, covariates for a prior (0 without a context). A part without a network ignores it.
        network: Default network of the part; None for no network.
        cells: D, the number of cells of a datum.
        context_features: C, the number of covariates.
        image_shape: Shape of a datum; None for a table.
        data: Description of the data by the likelihood.
    """

    role: Literal["prior", "likelihood", "posterior", "layer"]
    event_shape: tuple[int, ...]
    in_features: int
    network: NetworkSpec | None
    cells: int
    context_features: int = 0
    image_shape: tuple[int, ...] | None = None
    data: EncoderInput = field(default_factory=EncoderInput)

    def trunk(
        self, named: NetworkSpec | None, num_parameters: Callable[[], int] | None = None
    ) -> tuple[nn.Module | None, str | None]:
        """Returns the network, and the head on top of it.

        Arguments:
            named: Network that the part declares; None for the default of the place.
            num_parameters: Function that returns the number of parameters for each cell, for networks without a head;
                None if a head is needed.
        """
        spec = self.network if named is None else named
        if spec is None:
            return None, "linear"
        try:
            return self._built(spec, num_parameters)
        except InputError as error:
            default = {"posterior": "networks.encoder", "likelihood": "networks.decoder"}.get(self.role, "network")
            raise InputError(f"{default if named is None else 'network'}: {error}") from None

    def _built(self, spec: NetworkSpec, num_parameters: Callable[[], int] | None) -> tuple[nn.Module, str | None]:
        if self.role == "posterior":
            return spec.build_encoder(self.cells, self.image_shape, self.context_features, self.data), "linear"
        if self.role == "likelihood":
            if num_parameters is not None:
                return spec.build_decoder(self.in_features, self.image_shape, num_parameters())
            spec.check_features()
        if self.in_features == 0:
            raise InputError("a network here has no input; declare a context, or leave the network out.")
        return spec.build_encoder(self.in_features, None), "linear"

    def layer(self, size: int, in_features: int, first: bool) -> Place:
        """Returns the place of one layer of a hierarchy at this place.

        A layer that receives data together with another layer gets raw data, unless its network declares ``input``.

        Arguments:
            size: Size of the layer's draws.
            in_features: Size of the input of the layer's network.
            first: Whether the layer receives exactly the input of the hierarchy.
        """
        if first:
            return replace(self, event_shape=(size,))
        network = None if in_features == 0 else NetworkSpec(mlp=[200])
        return replace(self, role="layer", event_shape=(size,), in_features=in_features, network=network)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Part(Strict):
    """Prior, likelihood or posterior in an experiment file.

    Attributes:
        network: Network of the part, which replaces the one under ``networks``.
        reads: Layers of a hierarchical prior that a likelihood receives; default: all.
    """

    network: NetworkSpec | None = None
    reads: Annotated[list[str] | None, BeforeValidator(_listed)] = None

    @property
    @abstractmethod
    def title(self) -> str:
        """Name in a report, such as ``Normal``."""

    @abstractmethod
    def build_at(self, place: Place) -> nn.Module:
        """Returns the module.

        Raises:
            InputError: If the part does not fit its place.
        """

    def event_shape(self, latent: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of one draw, for latents of the declared shape."""
        return tuple(latent)

    @property
    def support(self) -> Constraint | None:
        """The support of a draw; None if it is unknown before the part is built."""
        return None

    def data_of(self, cells: int) -> EncoderInput:
        """Returns the description of data with so many cells by this likelihood.

        Raises:
            InputError: If the likelihood cannot be built.
        """
        return EncoderInput(self.support)
