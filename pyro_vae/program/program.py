r"""Any Pyro model and guide with one plate over data, under the protocol that a VAE has."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError
from pyro_vae.program import running
from pyro_vae.program.data_check import ProgramCheck
from pyro_vae.program.declaration import Declared, declared
from pyro_vae.program.first_densities import check_parameters, vectorizes
from pyro_vae.program.half import Function, Half
from pyro_vae.program.joint import LatentDistribution, over_particles
from pyro_vae.program.local_posterior import LocalPosterior
from pyro_vae.program.named_sites import NamedSites
from pyro_vae.program.parts import Originals, Parameters, Supplied
from pyro_vae.program.sites import GlobalSite, Site, flat_of, values_of
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.finite import CellNames


class Program(NamedSites, LocalPosterior):
    r"""A Pyro model and an amortized guide, trained and evaluated as a `VAE` is.

    .. math:: p(x, z) = \prod_s p(z_s | z_{\mathrm{pa}(s)}) \prod_o p(x_o | z), \qquad q(z|x) = \prod_s q(z_s | \ldots)

    Model and guide are functions, or modules, of one argument: a batch. They have one plate over data, of the same
    name. In it lie the latent sites and the observed ones, any number of each, in nested plates and loops of fixed
    length too. The latents of a datum, side by side, are its z. Latents outside the plate are shared by all data; the
    guide has a posterior over them, and their KL counts once for N data. Estimates are given a draw of them.

    Discrete sites that the model marks by ``infer={"enumerate": "parallel"}``, and that the guide does not draw, are
    summed out: every density is the one of the other sites. They are no part of z.

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
        sites: The latent sites of each datum, in the order of the model.
        enumerated_sites: Names of the discrete sites that are summed out.
        shared_sites: The latent sites outside the plate over data.
        observed_discrete: Whether the values of each observed site are discrete, by name.
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
        self._model, self._guide = Function(model), Function(guide)
        found = declared(model, guide, example, plate)
        self._declare(found)
        used_by_model, used_by_guide = check_parameters(self)
        self._used_by_model.update(used_by_model)
        self._generative.update(self._registered_by_both() - used_by_guide)
        self.vectorized = vectorizes(self)

    def _declare(self, found: Declared) -> None:
        self.layout, self.sites, self.shared_sites, self.form = found.layout, found.sites, found.shared, found.form
        self._enumerated, self.observed_discrete = found.enumerated, found.discrete
        self.max_plate_nesting = found.layout.nesting
        self.size = self._whole_size(found.full_size)
        self._fixed: dict[str, Tensor] = {}
        self.latent_shape = torch.Size([sum(site.size for site in self._all_sites)])
        if self.shared_sites and self.size is None:
            raise InputError(
                f"Program: the site `{self.shared_sites[0].name}` lies outside the plate `{self.plate}`, so it is one "
                "for all data; pass size=N, the number of training data, by which its KL is divided."
            )
        self.model_modules, self.guide_modules = (nn.ModuleDict(half.modules) for half in (found.model, found.guide))
        self.model_parameters, self.guide_parameters = (
            Parameters(half.parameters) for half in (found.model, found.guide)
        )
        self._originals = Originals([*self.model_modules.values(), *self.guide_modules.values()])
        self._statements = found.model.statements | found.guide.statements
        self._reparameterized, self._prior_reparameterized = found.reparameterized
        self._generative: set[str] = set()
        self._used_by_model: set[str] = set()
        self._example, self._observed, self.vectorized = found.example, found.observed, True

    def _whole_size(self, full_size: int | None) -> int | None:
        """N: as declared, or as a subsampled plate over data says."""
        if None not in (self.size, full_size) and self.size != full_size:
            raise InputError(
                f"Program: `size` is {self.size}, and the plate `{self.plate}` is a sample of {full_size} rows; give "
                "both the number of training data."
            )
        return full_size if self.size is None else self.size

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
        found = [
            name for name, p in self.named_parameters() if name in self._used_by_model and id(p) in self._of_guide()
        ]
        return [("model", name.split(".", 1)[1]) for name in found]

    def _registered_by_both(self) -> set[str]:
        """Names of parameters in modules that model and guide register; they are the model's if q does not use them."""
        of_model = {id(p) for part in (self.model_modules, self.model_parameters) for p in part.parameters()}
        return {name for name, p in self.named_parameters() if id(p) in of_model & self._of_guide()}

    def _of_guide(self) -> set[int]:
        generative = {id(p) for name, p in self.named_parameters() if name in self._generative}
        parts = (self.guide_modules, self.guide_parameters)
        return {id(p) for part in parts for p in part.parameters()} - generative

    @property
    def _all_sites(self) -> list[Site | GlobalSite]:
        return [*self.sites, *self.shared_sites]

    def _like(self) -> Tensor:
        own = (t for t in itertools.chain(self.parameters(), self.buffers()) if t.is_floating_point())
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
        function: Function,
        batch: Batch,
        particles: int | None = None,
        given: Mapping[str, Tensor] | None = None,
        dreaming: bool = False,
        enumerating: bool = False,
    ) -> Trace:
        called, outside = self._called(function), [*self._fixed, *(site.name for site in self.shared_sites)]
        given = {**self._fixed, **(given or {})}
        with self._prepared():
            data = self.form.given(batch)
            return running.run(called, data, self.layout, particles, given, dreaming, outside, enumerating)

    def _global_terms(self, trace: Trace, like: Tensor) -> Tensor:
        """The log density of the global latents, divided by N."""
        nodes = {site.name: trace.nodes[site.name] for site in self.shared_sites}
        return running.log_density_of_globals(nodes, like) / (self.size or 1)

    @property
    def has_globals(self) -> bool:
        """Whether there are latents that all data share."""
        return bool(self.shared_sites)

    @torch.no_grad()
    def at_globals(self, seed: int = 0, *, prior: bool = False) -> Program:
        """Returns the program given a draw of its global latents; it shares all parameters.

        Arguments:
            seed: Seed of the draw; the global random state does not change.
            prior: Whether to draw from the model; else from the guide.
        """
        if not self.shared_sites:
            return self
        with evaluating(self), isolated(seed, "globals"):
            trace = self._run(self._model if prior else self._guide, self.probe_batch())
        given = copy.copy(self)
        given._fixed = {site.name: trace.nodes[site.name]["value"] for site in self.shared_sites}
        given.shared_sites = ()
        given.latent_shape = torch.Size([sum(site.size for site in self.sites)])
        return given

    def _called(self, function: Function) -> Any:
        """The function, or its copy where it is a module of this program."""
        if not isinstance(function.function, nn.Module):
            return function.function
        own = [*self.model_modules.values(), *self.guide_modules.values()]
        return next(mine for mine, its in zip(own, self._originals.modules, strict=True) if its is function.function)

    def _inside(self, handler: Messenger, function: Function) -> Function:
        """A half of the program inside a handler."""
        return Function(handler(self._called(function)))

    # ------------------------------------------------------------------ densities of a ready batch

    def posterior_given(self, batch: Batch) -> LatentDistribution:
        """Returns q(z|x), with ``batch_shape == (B,)``."""
        return self._latents(self._guide, batch, self._reparameterized)

    def prior_given(self, batch: Batch) -> LatentDistribution:
        """Returns p(z), with ``batch_shape == (B,)``."""
        return self._latents(self._model, batch, self._prior_reparameterized)

    def _latents(self, function: Function, batch: Batch, has_rsample: bool) -> LatentDistribution:
        return LatentDistribution(Half(self, function, batch), self._all_sites, batch.size, has_rsample)

    def log_likelihood_of(self, z: Tensor, batch: Batch) -> Tensor:
        """Returns the log density of all observed sites given z, in nats, shape ``(..., B)``."""
        density: Tensor = over_particles(lambda each: self._log_density(each, batch, "likelihood"), z)
        return density

    def log_joint_of(self, z: Tensor, batch: Batch, p: TorchDistribution | None = None) -> Tensor:
        """Returns log p(x, z) in nats, shape ``(..., B)``, by one run of the model; z is ``(..., B, L)``."""
        density: Tensor = over_particles(lambda each: self._log_density(each, batch, "joint"), z)
        return density

    def _log_density(self, z: Tensor, batch: Batch, which: Literal["likelihood", "joint"]) -> Tensor:
        if z.dim() == 3 and not self.vectorized:
            return torch.stack([self._log_density(each, batch, which) for each in z])
        particles = z.shape[0] if z.dim() == 3 else None
        trace = self._run(self._model, batch, particles, values_of(self._all_sites, z), enumerating=self._enumerating)
        like, data = z if z.is_floating_point() else self._like(), running.observed(trace)

        def density(nodes: Mapping[str, Any]) -> Tensor:
            return running.log_density(nodes, self.layout, particles, batch.size, like)

        if which == "likelihood" and not self._enumerating:
            return density(data)
        latent = self._latent_nodes(trace)
        if which == "likelihood":
            prior = density(latent)
            return torch.where(prior.isneginf(), prior, density({**latent, **data}) - prior)
        joint = density({**latent, **data}) if self._enumerating else density(latent) + density(data)
        return joint + self._global_terms(trace, like)

    def log_probabilities_of(self, site: str, z: Tensor, batch: Batch) -> Tensor:
        """Returns log p(y | x, z) of an enumerated site; see `LatentVariableModel.log_probabilities_of`."""
        if not self.vectorized:
            return torch.stack([self._log_probabilities(site, each, batch) for each in z])
        return self._log_probabilities(site, z, batch)

    def _log_probabilities(self, site: str, z: Tensor, batch: Batch) -> Tensor:
        particles = z.shape[0] if z.dim() == 3 else None
        trace = self._run(self._model, batch, particles, values_of(self._all_sites, z), enumerating=True)
        nodes = {**self._latent_nodes(trace), **running.observed(trace)}
        return running.log_probabilities(nodes, site, self.layout, particles, batch.size)

    @property
    def enumerated_sites(self) -> tuple[str, ...]:
        """Names of the discrete sites that are summed out."""
        return tuple(site.name for site in self._enumerated)

    @property
    def _enumerating(self) -> bool:
        return bool(self._enumerated)

    def _latent_nodes(self, trace: Trace) -> dict[str, Any]:
        """The local latents and the enumerated sites in a trace."""
        names = [*(site.name for site in self.sites), *self.enumerated_sites]
        return {name: trace.nodes[name] for name in names if name in trace.nodes}

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
                    "take its place in a batch drawn from the model; pass a tensor of the batch as obs=, as it is, or "
                    "do without such draws: the sleep phase of wake-sleep and rws, calibration, samples."
                )
            values[place] = trace.nodes[name]["value"]
        drawn = {n: node.get("value") for n, node in trace.nodes.items()}
        z = flat_of(self.sites, self.shared_sites, drawn, (batch.size,), self._like())
        return z, self.form.replaced(batch, values)

    # ------------------------------------------------------------------ the Pyro programs

    def model_of(self, batch: Batch) -> Any:
        """The model of a ready batch, with this program's parameters, scaled by N/M and by the data's weights."""
        return self._scaled(self._model, batch)

    def guide_of(self, batch: Batch) -> Any:
        """The guide of a ready batch; see `model_of`."""
        return self._scaled(self._guide, batch)

    def _scaled(self, function: Function, batch: Batch) -> Any:
        names = {site.name for site in self.shared_sites}
        with self._prepared(), self.scaled(batch, self.layout.data, names):
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
        """Returns n rows of the example, from its beginning again after its end, with their context or another one."""
        rows = torch.arange(n, device=self._example.device) % self._example.size
        batch = self._example.select(rows).to(self.device, self.dtype)
        if context is None or self._example.context is None:
            return batch
        return batch._replace(context=context.to(self.device, self.dtype))

    def extra_repr(self) -> str:
        names = ", ".join(site.name for site in self.sites)
        return f"sites=({names}), latent_shape={tuple(self.latent_shape)}, plate={self.plate!r}, size={self.size}"
