r"""Where in a VAE a part of an experiment file stands: what it receives, and of what its draws consist."""

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
    """Raises an `InputError` where an experiment says for data of which size it is, and these have another.

    Arguments:
        name: Of the size: ``"cells"`` or ``"covariates"``.
        declared: What the experiment says; None: nothing.
        found: What the data have.
    """
    if declared not in (None, found):
        raise InputError(
            f"{name}: the experiment is for data with {declared} {name}, and these have {found}; name its data, such "
            f"as data: people.csv, or leave `{name}` out."
        )


@dataclass(frozen=True)
class Place:
    """The surroundings of a part.

    Attributes:
        role: Of which part of the VAE this is, or of which layer of one.
        event_shape: Of one draw.
        in_features: What its network receives: latents and covariates for a likelihood, cells and covariates for a
            posterior, covariates for a prior. A part without a network ignores it; a prior's is 0 without a context.
        network: The network that it has unless it names its own; None: none.
        cells: D, the number of cells of a datum.
        context_features: C, the number of covariates.
        image_shape: Of a datum; None for a table.
        data: What the likelihood says of the data.
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
        """Returns the network, and the head that stands on it.

        Arguments:
            named: The network that the part names; None: the place's own.
            num_parameters: How many parameters for each cell a network without a head must emit; None: a head is
                wanted.
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
            raise InputError("nothing is given here for a network to see; declare a context, or leave it out.")
        return spec.build_encoder(self.in_features, None), "linear"

    def layer(self, size: int, in_features: int, first: bool) -> Place:
        """Returns the place of one layer of a hierarchy that stands here.

        Data that stand beside another layer reach its network as they are, unless it says ``input``.

        Arguments:
            size: Of its draws.
            in_features: What its network receives.
            first: Whether that is what the hierarchy itself receives, and nothing else.
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
        network: The part's own network, in place of the one under ``networks``.
        reads: Of a likelihood: the layers of a hierarchical prior that it is given; default: all.
    """

    network: NetworkSpec | None = None
    reads: Annotated[list[str] | None, BeforeValidator(_listed)] = None

    @property
    @abstractmethod
    def title(self) -> str:
        """What a report calls it, such as ``Normal``."""

    @abstractmethod
    def build_at(self, place: Place) -> nn.Module:
        """Returns the module.

        Raises:
            InputError: Where it does not fit its place.
        """

    def event_shape(self, latent: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of one draw where the file declares latents of this shape."""
        return tuple(latent)

    @property
    def support(self) -> Constraint | None:
        """The support of a draw, where it is known before the part is built; None where it is not."""
        return None

    def data_of(self, cells: int) -> EncoderInput:
        """Returns what a likelihood of so many cells says of its data.

        Raises:
            InputError: Where it cannot be built.
        """
        return EncoderInput(self.support)
