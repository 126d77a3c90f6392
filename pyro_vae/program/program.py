r"""Any Pyro model and guide with one plate over data, under the protocol that a VAE has."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.program import running
from pyro_vae.program.data_check import ProgramCheck
from pyro_vae.program.declaration import Declared, declared
from pyro_vae.program.first_densities import check_parameters, vectorizes
from pyro_vae.program.joint import LatentDistribution, over_particles
from pyro_vae.program.parts import Originals, Parameters, Supplied
from pyro_vae.program.sites import flat_of, values_of
from pyro_vae.vae.finite import CellNames
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class Program(LatentVariableModel):
    r"""A Pyro model and an amortized guide, trained and evaluated as a `VAE` is.

    .. math:: p(x, z) = \prod_s p(z_s | z_{\mathrm{pa}(s)}) \prod_o p(x_o | z), \qquad q(z|x) = \prod_s q(z_s | \ldots)

    Model and guide are functions, or modules, of one argument: a batch. They have one plate over data, of the same
    name. In it lie the latent sites and the observed ones, any number of each, in nested plates and loops of fixed
    length too. The latents of a datum, side by side, are its z.

    The program runs once at construction, on an example. Afterwards its sites, shapes and parameters stay the same. The
    parameters are those of the modules that model and guide call, and of their ``pyro.param`` statements; Pyro's param
    store stays as it is.

    Arguments:
        model: p(x, z): draws the latents and observes the data.
        guide: q(z|x): draws the same latents given the data.
        example: A batch of at least two data: a tensor, a `Batch`, or a mapping or tuple of tensors with one first
            dimension. Data to train and to evaluate have the same form.
        plate: Name of the plate over data.
        size: N, the number of training data; needed by algorithms that weigh something against the whole data set.

    Attributes:
        sites: The latent sites, in the order of the model.
        vectorized: Whether K particles run at once; else one after the other.
        latent_shape: Shape of z, ``(L,)``.

    Raises:
        InputError: For a program that does not fit; the message names the site.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     weight = pyro.param("weight", torch.tensor(0.1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(weight * x, 0.7))
        >>> program = Program(model, guide, torch.randn(2))
        >>> program.log_weights(torch.randn(5), num_particles=3).shape
        torch.Size([3, 5])
    """

    def __init__(self, model: Any, guide: Any, example: Any, *, plate: str = "data", size: int | None = None) -> None:
        super().__init__()
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise InputError(f"Program: `size` is the number of training data, a positive integer; got `{size!r}`.")
        self.size, self.plate = size, plate
        self._model, self._guide = _Function(model), _Function(guide)
        found = declared(model, guide, example, plate)
        self._declare(found)
        check_parameters(self)
        self.vectorized = vectorizes(self)

    def _declare(self, found: Declared) -> None:
        self.layout, self.sites, self.form = found.layout, found.sites, found.form
        self.max_plate_nesting = found.layout.nesting
        self.latent_shape = torch.Size([sum(site.size for site in self.sites)])
        self.model_modules, self.guide_modules = (nn.ModuleDict(half.modules) for half in (found.model, found.guide))
        self.model_parameters, self.guide_parameters = (
            Parameters(half.parameters) for half in (found.model, found.guide)
        )
        self._originals = Originals([*self.model_modules.values(), *self.guide_modules.values()])
        self._statements = found.model.statements | found.guide.statements
        self._reparameterized, self._prior_reparameterized = found.reparameterized
        self._example, self._observed, self.vectorized = found.example, found.observed, True

    # ------------------------------------------------------------------ parameters

    @property
    def phi(self) -> dict[str, nn.Parameter]:
        """The inference parameters by name: those of the guide."""
        return {name: p for name, p in self.named_parameters() if id(p) in self._of_guide()}

    @property
    def theta(self) -> dict[str, nn.Parameter]:
        """The generative parameters by name: those of the model that the guide does not use."""
        return {name: p for name, p in self.named_parameters() if id(p) not in self._of_guide()}

    @property
    def shared(self) -> list[tuple[str, str]]:
        """Parameters that the model has in common with the guide."""
        generative = nn.ModuleList([self.model_modules, self.model_parameters])
        return [("model", name) for name, p in generative.named_parameters() if id(p) in self._of_guide()]

    def _of_guide(self) -> set[int]:
        return {id(p) for part in (self.guide_modules, self.guide_parameters) for p in part.parameters()}

    def _like(self) -> Tensor:
        own = (t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point())
        return next(own, self.form.like)

    # ------------------------------------------------------------------ runs

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """A block in which functions use this program's parameters, and the param store is put back at its end."""
        own = [*self.model_modules.values(), *self.guide_modules.values()]
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "(?s).*was not registered in the param store")  # a frozen parameter
            stack.enter_context(pyro.get_param_store().scope())
            stack.enter_context(self._originals.lent(own))
            stack.enter_context(Supplied([self.model_parameters, self.guide_parameters], self._statements))
            yield

    def _run(
        self,
        function: _Function,
        batch: Batch,
        particles: int | None = None,
        given: Mapping[str, Tensor] | None = None,
        dreaming: bool = False,
    ) -> Trace:
        called = self._called(function)
        with self._prepared():
            return running.run(called, self.form.given(batch), self.layout, particles, given, dreaming)

    def _called(self, function: _Function) -> Any:
        """The function, or its copy where it is a module of this program."""
        if not isinstance(function.function, nn.Module):
            return function.function
        own = [*self.model_modules.values(), *self.guide_modules.values()]
        return next(mine for mine, its in zip(own, self._originals.modules, strict=True) if its is function.function)

    # ------------------------------------------------------------------ densities of a ready batch

    def posterior_given(self, batch: Batch) -> LatentDistribution:
        """Returns q(z|x), with ``batch_shape == (B,)``."""
        return LatentDistribution(_Half(self, self._guide, batch), self.sites, batch.size, self._reparameterized)

    def prior_given(self, batch: Batch) -> LatentDistribution:
        """Returns p(z), with ``batch_shape == (B,)``."""
        return LatentDistribution(_Half(self, self._model, batch), self.sites, batch.size, self._prior_reparameterized)

    def log_likelihood_of(self, z: Tensor, batch: Batch) -> Tensor:
        """Returns the log density of all observed sites given z, in nats, shape ``(..., B)``."""
        return self.log_densities_of(z, batch)[1]

    def log_joint_of(self, z: Tensor, batch: Batch) -> Tensor:
        """Returns log p(x, z) in nats, shape ``(..., B)``; z is ``(..., B, L)``."""
        log_prior, log_likelihood = self.log_densities_of(z, batch)
        return log_prior + log_likelihood

    def log_densities_of(self, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns log p(z) and log p(x|z) in nats, of shape ``(..., B)``, by one run of the model."""
        densities: tuple[Tensor, Tensor] = over_particles(lambda each: self._densities(each, batch), z)
        return densities

    def _densities(self, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        if z.dim() == 3 and not self.vectorized:
            pairs = [self._densities(each, batch) for each in z]
            return torch.stack([p for p, _ in pairs]), torch.stack([x for _, x in pairs])
        particles = z.shape[0] if z.dim() == 3 else None
        trace = self._run(self._model, batch, particles, values_of(self.sites, z))
        like, names = z if z.is_floating_point() else self._like(), {site.name for site in self.sites}
        halves = ({name: trace.nodes[name] for name in names}, running.observed(trace))
        prior, likelihood = (running.log_density(half, self.layout, particles, batch.size, like) for half in halves)
        return prior, likelihood

    @torch.no_grad()
    def dreams(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Returns draws (z, x) from the model; see `LatentVariableModel.dreams`.

        Raises:
            InputError: If the value of an observed site is none of the batch's tensors.
        """
        trace = self._run(self._model, batch, dreaming=True)
        values = {}
        for name, place in self._observed.items():
            if place is None:
                raise InputError(
                    f"Program: the value of the site `{name}` is none of the batch's tensors, so that a draw cannot "
                    "take its place; pass a tensor of the batch as obs=, as it is, or use an algorithm without a "
                    "sleep phase."
                )
            values[place] = trace.nodes[name]["value"]
        z = flat_of(self.sites, {site.name: trace.nodes[site.name]["value"] for site in self.sites}, None)
        return z, self.form.replaced(batch, values)

    # ------------------------------------------------------------------ the Pyro programs

    def model_of(self, batch: Batch) -> Any:
        """The model of a ready batch, with this program's parameters, scaled by N/M and by the data's weights."""
        return self._scaled(self._model, batch)

    def guide_of(self, batch: Batch) -> Any:
        """The guide of a ready batch; see `model_of`."""
        return self._scaled(self._guide, batch)

    def _scaled(self, function: _Function, batch: Batch) -> Any:
        with self._prepared(), self.scaled(batch, self.layout.data):
            return self._called(function)(self.form.given(batch))

    # ------------------------------------------------------------------ data

    def check(self, data: Any) -> Batch:
        """Returns data as a ready `Batch`.

        Arguments:
            data: Of the example's form.

        Raises:
            InputError: For data of another form, other shapes, or different numbers of rows.
        """
        return self.form.typed(self.form.batch(data, "Program"), self.dtype)

    def as_batch(self, data: Any, caller: str, name: str = "x") -> Batch:
        """Returns data of the example's form as a `Batch`."""
        return self.form.batch(data, caller, name)

    def typed(self, batch: Batch) -> Batch:
        """Returns a batch with floating-point tensors in the parameters' type, and others in the example's."""
        return self.form.typed(batch, self.dtype)

    def value_check(
        self, check_support: bool, unknown_labels: bool = False, names: CellNames | None = None
    ) -> Callable[[Batch, str], Batch]:
        """Returns a check of every value of data: it runs the model with Pyro's validation."""
        return ProgramCheck(self, check_support, names)

    def probe_batch(self) -> Batch:
        """Returns the example."""
        return self._example.to(self.device, self.dtype)

    def blank(self, n: int, context: Tensor | None = None) -> Batch:
        """Returns n rows of the example, from its beginning again after its end."""
        rows = torch.arange(n, device=self._example.device) % self._example.size
        return self._example.select(rows).to(self.device, self.dtype)

    def extra_repr(self) -> str:
        names = ", ".join(site.name for site in self.sites)
        return f"sites=({names}), latent_shape={tuple(self.latent_shape)}, plate={self.plate!r}, size={self.size}"


class _Function:
    """A model or guide beside the modules of a `Program`; a copy of the program keeps it."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __deepcopy__(self, memo: dict[int, Any]) -> _Function:
        return self


class _Half:
    """The model or the guide of a program for one batch; see `Draws`."""

    def __init__(self, program: Program, function: _Function, batch: Batch) -> None:
        self.program, self.function, self.batch = program, function, batch

    def draw(self, particles: int | None) -> tuple[Tensor, Tensor]:
        """Returns draws of all latents, and their log density."""
        if particles is not None and not self.program.vectorized:
            pairs = [self.draw(None) for _ in range(particles)]
            return torch.stack([z for z, _ in pairs]), torch.stack([value for _, value in pairs])
        trace = self.program._run(self.function, self.batch, particles)
        z = flat_of(self.program.sites, {name: node["value"] for name, node in self._nodes(trace).items()}, particles)
        return z, self._sum(trace, z, particles)

    def log_density(self, z: Tensor) -> Tensor:
        """Returns the log density of all latents."""
        if z.dim() == 3 and not self.program.vectorized:
            return torch.stack([self.log_density(each) for each in z])
        trace, particles = self._at(z)
        return self._sum(trace, z, particles)

    def kl_from(self, other: _Half, z: Tensor, sampled: bool) -> dict[str, Tensor]:
        """Returns the KL of each site from this half's distribution to another's, given the sites before.

        It is in closed form where there is one, else the log ratio at z, if it may be ``sampled``.
        """
        if z.dim() == 3 and not self.program.vectorized:
            found = [self.kl_from(other, each, sampled) for each in z]
            return {name: torch.stack([each[name] for each in found]) for name in found[0]}
        (mine, particles), (its, _) = self._at(z), other._at(z)
        pairs = zip(self._nodes(mine).values(), self._nodes(its).values(), strict=True)
        return running.divergences(pairs, self.program.layout, particles, self.batch.size, sampled)

    def _at(self, z: Tensor) -> tuple[Trace, int | None]:
        particles = z.shape[0] if z.dim() == 3 else None
        return self.program._run(self.function, self.batch, particles, values_of(self.program.sites, z)), particles

    def _nodes(self, trace: Trace) -> dict[str, Any]:
        return {site.name: trace.nodes[site.name] for site in self.program.sites}

    def _sum(self, trace: Trace, z: Tensor, particles: int | None) -> Tensor:
        like = z if z.is_floating_point() else self.program._like()
        return running.log_density(self._nodes(trace), self.program.layout, particles, self.batch.size, like)
