r"""Several stochastic layers as one latent: p(z2) p(z1|z2) and q(z1|x) q(z2|z1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.statistics import Statistics
from pyro_vae.distributions.support import base_support
from pyro_vae.errors import InputError, near_match
from pyro_vae.runtime.modes import evaluating, switched
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.part import blocks_of, column_names, event_shape_of, network_of, start_at, takes_offset

CONTEXT = "context"


class _Layer:
    """A layer's distribution, and whether its parameters have gradients."""

    def __init__(self, distribution: TorchDistribution) -> None:
        self.distribution, self.with_gradients = distribution, torch.is_grad_enabled()

    @property
    def serves(self) -> bool:
        """Whether it can be used now: not if it was made without gradients and gradients are enabled."""
        return self.with_gradients or not torch.is_grad_enabled()


class HierarchicalDistribution(TorchDistribution):
    r"""The joint distribution of all layers; each layer is given those drawn before it.

    .. math:: \log p(z) = \sum_l \log p(z_l | z_{\mathrm{pa}(l)})

    z is the concatenation of the layers. A draw and its density need one pass through the layers' networks: the layers
    of the last draw are stored, and layers that are given the context alone are made once.

    Attributes:
        blocks: Slice of z of each layer, by name.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, hierarchy: Hierarchy, context: Tensor | None, batch_shape: Sequence[int]) -> None:
        self.hierarchy, self.context, self.blocks = hierarchy, context, hierarchy.blocks
        self._training = hierarchy.training  # layers run later, and then in the mode of now
        self._of_context: dict[str, _Layer] = {}
        self._of_last: tuple[Tensor, dict[str, _Layer]] | None = None  # the last draw, and its layers
        super().__init__(torch.Size(batch_shape), hierarchy.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether gradients pass through the draws of all layers."""
        return self.hierarchy.has_rsample(self.context)

    @property
    def support(self) -> Constraint:
        """The supports of the layers, concatenated."""
        drawn = self.drawn()
        return _joint([drawn[name].support for name in self.blocks], list(self.blocks.values()))

    def drawn(self) -> dict[str, TorchDistribution]:
        """Returns the distribution of each layer given a draw of earlier ones; the global stream is unchanged."""
        return self.hierarchy.drawn(self.context)

    def layer(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        """Returns the distribution of one layer given the values of the layers that it depends on."""
        if not self.hierarchy.sees_context_alone(name):
            return self._run(name, values)
        layer = self._of_context.get(name)
        if layer is None or not layer.serves:
            layer = self._of_context[name] = _Layer(self._run(name, values))
        return layer.distribution

    def _run(self, name: str, values: Mapping[str, Tensor]) -> TorchDistribution:
        if self.hierarchy.training == self._training:
            return self.hierarchy.layer(name, values, self.context)
        with switched(self.hierarchy, self._training):
            return self.hierarchy.layer(name, values, self.context)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws of z, layer after layer, through which gradients pass."""
        return self._ancestral(torch.Size(sample_shape), "rsample")

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Returns draws of z without gradients."""
        with torch.no_grad():
            return self._ancestral(torch.Size(sample_shape), "sample")

    def _ancestral(self, sample_shape: torch.Size, how: str) -> Tensor:
        values: dict[str, Tensor] = {}
        layers: dict[str, _Layer] = {}
        shape = sample_shape + self.batch_shape
        for name in self.hierarchy.layers:
            given = self.layer(name, values)
            layers[name] = _Layer(given)
            if (batch_shape := torch.broadcast_shapes(given.batch_shape, self.batch_shape)) != given.batch_shape:
                given = given.expand(batch_shape)
            missing = shape[: len(shape) - len(given.batch_shape)]
            values[name] = getattr(given, how)(missing).expand(*shape, -1)
        z = torch.cat([values[name] for name in self.blocks], dim=-1)
        self._of_last = (z, layers)
        return z

    def split(self, value: Tensor) -> dict[str, Tensor]:
        """Returns the part of z of each layer, by name, shapes ``(..., L_l)``."""
        return {name: value[..., block] for name, block in self.blocks.items()}

    def block_log_prob(self, value: Tensor) -> dict[str, Tensor]:
        """Returns the log-density of each layer given earlier ones, by name, in nats; their sum is `log_prob`.

        Arguments:
            value: Value of z, shape ``(..., L)``.
        """
        values = self.split(value)
        last, layers = (None, {}) if self._of_last is None else self._of_last
        if value is last and all(layer.serves for layer in layers.values()):
            return {name: layers[name].distribution.log_prob(values[name]) for name in self.blocks}
        return {name: self.layer(name, values).log_prob(values[name]) for name in self.blocks}

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(z)."""
        total: Tensor = sum(
            self.block_log_prob(value).values(), torch.zeros((), dtype=value.dtype, device=value.device)
        )
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> HierarchicalDistribution:
        """Returns the distribution with another batch shape; the draws of a batch are independent."""
        return HierarchicalDistribution(self.hierarchy, self.context, batch_shape)

    def __repr__(self) -> str:
        blocks = ", ".join(f"{name}: {block.stop - block.start}" for name, block in self.blocks.items())
        return f"Hierarchy({blocks}, batch_shape={tuple(self.batch_shape)})"


class Hierarchy(nn.Module):
    r"""Several stochastic layers, declared in the order in which they are drawn.

    It is one distribution over the concatenation of all layers, in the order of their names. So the prior's
    p(z2) p(z1|z2) and the posterior's q(z1|x) q(z2|z1) are over the same z, and a VAE has one site. The first layer is
    given the context. Each later layer is given the layer drawn before it, unless ``inputs`` says otherwise. `Reads`
    selects the layers that the likelihood is given.

    A draw and its density come from one pass through the layers' networks. The density of other values, as in `RWS` or
    `ScoreFunction`, needs another pass through the layers that are given other layers. With such algorithms do not use
    dropout or batch normalisation in those layers.

    Arguments:
        inputs: Inputs of a layer, by the layer's name: layers drawn before it, or ``"context"``.
        **layers: Modules whose ``forward(inputs)`` returns a distribution, with an attribute ``event_shape`` of one
            dimension, as `Conditional`, `Mixture` and `Flow` have. The first layer of a prior takes nothing.

    Raises:
        InputError: For fewer than two layers, an event that is no vector, or an input that is not drawn before.

    Reference: Rezende, Mohamed and Wierstra, "Stochastic backpropagation", 2014, section 2; Burda, Grosse and
    Salakhutdinov, "Importance weighted autoencoders", 2015, section 5 (the two-layer model).

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import Conditional, Fixed, mlp
        >>> prior = Hierarchy(
        ...     z2=Conditional(dist.Normal, (5,), loc=Fixed(0.0), scale=Fixed(1.0)),
        ...     z1=Conditional(dist.Normal, (10,), given=mlp(5, 20)),
        ... )
        >>> prior().blocks
        {'z1': slice(0, 10, None), 'z2': slice(10, 15, None)}
        >>> prior().sample((3,)).shape
        torch.Size([3, 15])
    """

    def __init__(self, inputs: Mapping[str, Sequence[str]] | None = None, **layers: nn.Module) -> None:
        super().__init__()
        if len(layers) < 2:
            raise InputError(f"Hierarchy: expected at least two layers, such as z2=..., z1=...; got {list(layers)}.")
        for name, layer in layers.items():
            shape = event_shape_of(layer)
            if not isinstance(layer, nn.Module) or shape is None or len(shape) != 1:
                raise InputError(
                    f"Hierarchy: the layer `{name}` must be a module with an attribute event_shape of one dimension, "
                    f"such as Conditional(dist.Normal, (8,), ...); got `{type(layer).__name__}` with {shape}."
                )
        self.layers = nn.ModuleDict(layers)
        self.declared_inputs = {} if inputs is None else {name: tuple(given) for name, given in inputs.items()}
        self.inputs = _resolved(list(layers), self.declared_inputs)
        self.blocks: dict[str, slice] = {}
        start = 0
        for name in sorted(layers):
            size = int(layers[name].event_shape[0])  # type: ignore[index]
            self.blocks[name] = slice(start, start + size)
            start += size
        self.event_shape = torch.Size((start,))
        self._has_rsample: bool | None = None

    def forward(self, context: Tensor | None = None) -> HierarchicalDistribution:
        """Returns the joint distribution of all layers given a context of shape ``(..., C)``, or none."""
        return HierarchicalDistribution(self, context, () if context is None else context.shape[:-1])

    def layer(self, name: str, values: Mapping[str, Tensor], context: Tensor | None) -> TorchDistribution:
        """Returns the distribution of one layer.

        Arguments:
            name: Name of the layer.
            values: Values of the layers drawn before it, by name, shapes ``(..., L_l)``.
            context: Context of shape ``(..., C)``, or None.
        """
        parts = [context if given == CONTEXT else values[given] for given in self.inputs[name]]
        given = [part for part in parts if part is not None]
        if not given:
            return self.layers[name]()
        leading = torch.broadcast_shapes(*(part.shape[:-1] for part in given))
        return self.layers[name](torch.cat([part.expand(*leading, -1) for part in given], dim=-1))

    def sees_context_alone(self, name: str) -> bool:
        """Whether a layer is given no other layer."""
        return all(given == CONTEXT for given in self.inputs[name])

    def has_rsample(self, context: Tensor | None) -> bool:
        """Whether all layers are reparameterizable; determined once."""
        if self._has_rsample is None:
            with torch.no_grad():
                self._has_rsample = all(layer.has_rsample for layer in self.drawn(context).values())
        return self._has_rsample

    def drawn(self, context: Tensor | None) -> dict[str, TorchDistribution]:
        """Returns the distribution of each layer, by name, given a draw of earlier ones, in evaluation mode."""
        values: dict[str, Tensor] = {}
        layers: dict[str, TorchDistribution] = {}
        with isolated(0), evaluating(self):  # one draw must not change batch statistics
            for name in self.layers:
                layers[name] = self.layer(name, values, context)
                values[name] = layers[name].sample()
        return layers

    def to_spec(self) -> dict[str, Any]:
        """Returns the entry of the inputs in the experiment file; layers have their own ``to_spec``."""
        inputs = {name: list(given) for name, given in self.declared_inputs.items()}
        return {"inputs": inputs} if inputs else {}


class Reads(nn.Module):
    """A likelihood that is given only some layers of a `Hierarchy`.

    Arguments:
        likelihood: Module whose ``forward(context)`` returns p(x|z).
        *layers: Names of the layers that it is given, concatenated in this order.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import Conditional, mlp
        >>> likelihood = Reads(Conditional(dist.Bernoulli, (64,), given=mlp(10, 20)), "z1")
    """

    def __init__(self, likelihood: nn.Module, *layers: str) -> None:
        super().__init__()
        if not layers or not all(isinstance(name, str) for name in layers):
            raise InputError(f'Reads: expected names of layers, such as "z1"; got {layers!r}.')
        self.likelihood, self.layers = likelihood, layers
        self.column_names, self.takes_offset = column_names(likelihood), takes_offset(likelihood)

    @property
    def given(self) -> nn.Module | None:
        """The network of the likelihood."""
        return network_of(self.likelihood)

    def forward(self, context: Tensor, offset: Tensor | None = None) -> TorchDistribution:
        """Returns p(x|z) given the layers that it reads (and the covariates), as `VAE.decode` selects them."""
        return self.likelihood(context) if offset is None else self.likelihood(context, offset)

    def start_at(self, data: Statistics) -> None:
        """Puts the likelihood at the location and scale of data, if it can be; see `pyro_vae.vae.part.start_at`."""
        start_at(self.likelihood, data)

    def select(self, z: Tensor, prior: object) -> Tensor:
        """Returns the layers of z that are read, shape ``(..., sum of L_l)``.

        Arguments:
            z: Latents, shape ``(..., L)``.
            prior: Prior whose ``blocks`` are the slices of the layers.
        """
        blocks = blocks_of(prior)
        for name in self.layers:
            if name not in blocks:
                raise InputError(
                    f"VAE: the likelihood reads `{name}`, and the prior `{type(prior).__name__}` has no such layer; "
                    + (near_match(name, blocks) if blocks else "use a Hierarchy.")
                )
        return torch.cat([z[..., blocks[name]] for name in self.layers], dim=-1)


def _resolved(names: list[str], declared: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Returns the inputs of each layer."""
    for name, given in declared.items():
        if name not in names:
            raise InputError(f"Hierarchy: `inputs` names the layer `{name}`; {near_match(name, names)}")
        before = [*names[: names.index(name)], CONTEXT]
        for one in given:
            if one not in before:
                raise InputError(
                    f"Hierarchy: the layer `{name}` cannot be given `{one}`, which is not drawn before it; "
                    f"expected one of {', '.join(f'`{b}`' for b in before)}."
                )
    defaults = {name: (CONTEXT,) if i == 0 else (names[i - 1],) for i, name in enumerate(names)}
    return {name: tuple(declared.get(name, given)) for name, given in defaults.items()}


class _Side(Constraint):
    """The concatenation of supports of vectors."""

    event_dim = 1

    def __init__(self, supports: Sequence[Constraint], blocks: Sequence[slice]) -> None:
        self.supports, self.blocks = supports, blocks
        self.is_discrete = any(support.is_discrete for support in supports)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        parts = zip(self.supports, self.blocks, strict=True)
        return torch.stack([support.check(value[..., block]) for support, block in parts]).all(0)


def _joint(supports: Sequence[Constraint], blocks: Sequence[slice]) -> Constraint:
    """The support of the concatenation."""
    cells = [base_support(support) for support in supports]
    if all(cell is constraints.real for cell in cells):
        return constraints.real_vector
    if any(cell.event_dim for cell in cells):
        return _Side(supports, blocks)
    side = constraints.cat(cells, -1, [block.stop - block.start for block in blocks])
    return constraints.independent(side, 1)
