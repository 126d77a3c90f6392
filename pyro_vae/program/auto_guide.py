r"""A guide that follows from the model: an amortized posterior for each of its latent sites."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.errors import InputError, near_match
from pyro_vae.networks.mlp import mlp
from pyro_vae.program import running
from pyro_vae.program.encoder_input import EncoderInput
from pyro_vae.program.form import Form
from pyro_vae.program.guided_sites import GuidedSites, guided_sites
from pyro_vae.program.model_runs import ModelRuns, mask_of
from pyro_vae.program.parts import Copies
from pyro_vae.program.site_posterior import FAMILIES, GlobalPosterior, SitePosterior
from pyro_vae.runtime.precision import network_output

Dependencies = Literal["mean-field", "earlier"]


class AutoGuide(nn.Module):
    """A guide that follows from a model; see `auto_guide`.

    Attributes:
        encoder: Network from the input of a datum to features.
        input: What the encoder reads.
        local: The posteriors of the sites of a datum, in the order of the model.
        shared: The posteriors of the sites that all data share.
    """

    def __init__(
        self,
        runs: ModelRuns,
        form: Form,
        batch: Batch,
        sites: GuidedSites,
        encoder: nn.Module | None,
        dependencies: Dependencies,
        family: str,
    ) -> None:
        super().__init__()
        self.runs, self.form, self.layout = runs, form, sites.layout
        self.latents = {name: f"latent_{i}" for i, name in enumerate(sites.values)}
        for name, value in sites.values.items():
            self.register_buffer(self.latents[name], value, persistent=False)
        self._per_datum = sites.per_datum
        self.dependencies, nodes = dependencies, runs.first.nodes
        like = _like(encoder, sites, form)
        trace = self._run(batch)
        others = self._others(batch, trace)
        self.input = EncoderInput(trace, others, self.layout, like, standardised=encoder is None)
        self.encoder = self._default(like) if encoder is None else encoder
        features = self._first_features(trace, batch).shape[-1]
        self.local, self.shared = nn.ModuleList(), nn.ModuleList()
        self.order = sites.order
        earlier = 0
        for name in self.order:
            posterior: Any
            if name in sites.local:
                posterior = SitePosterior(nodes[name], self.layout, family, features, earlier).to(like)
                self.local.append(posterior)
            else:
                posterior = GlobalPosterior(nodes[name], self.layout, like)
                self.shared.append(posterior)
            earlier += posterior.size if dependencies == "earlier" else 0

    def forward(self, data: Any) -> dict[str, Tensor]:
        """Draws the latents of a batch by ``pyro.sample``; returns their values by name.

        Arguments:
            data: The batch, as the model takes it.
        """
        batch = self.form.batch(data, "auto_guide")
        trace = self._run(batch)
        context = self._features(trace, batch)
        posteriors = {part.name: part for part in (*self.local, *self.shared)}
        plates: dict[str, Any] = {}
        values: dict[str, Tensor] = {}
        for name in self.order:
            posterior, node = posteriors[name], trace.nodes[name]
            q = posterior(context, node)
            with _around(node, trace, plates):
                values[name] = pyro.sample(name, q)
            if self.dependencies == "earlier":
                context = _beside(context, posterior.rows(q, values[name]))
        return values

    @torch.no_grad()
    def _run(self, batch: Batch) -> Trace:
        """Runs the model with values of the latents that do not matter."""
        given = {}
        for name, buffer in self.latents.items():
            value = getattr(self, buffer)
            if name in self._per_datum:
                shape = list(value.shape)
                shape[self._per_datum[name]] = batch.size
                value = value.expand(shape)
            given[name] = value
        return self.runs(self.form.given(batch), given)

    def _features(self, trace: Trace, batch: Batch) -> Tensor:
        with torch.no_grad():
            rows = self.input(trace, self.form.tensors(batch))
        return network_output(self.encoder, rows)

    def _first_features(self, trace: Trace, batch: Batch) -> Tensor:
        try:
            return self._features(trace, batch)
        except RuntimeError as error:
            raise InputError(
                f"auto_guide: `encoder` fails on its input of shape (..., {self.input.size}), which are "
                f"{self.input.said}: {' '.join(str(error).split())}"
            ) from error

    def _default(self, like: Tensor) -> nn.Module:
        """One hidden layer, wider for more inputs."""
        return mlp(self.input.size, min(max(2 * self.input.size, 32), 200)).to(like)

    def _others(self, batch: Batch, trace: Trace) -> dict[int, Tensor]:
        """The tensors of a batch that change neither observed values nor masks if their rows change places."""
        before = _seen(trace)
        tensors = self.form.tensors(batch)
        found = {}
        for place, tensor in enumerate(tensors):
            after = _seen(self._run(self.form.replaced(batch, {place: tensor.roll(1, 0)})))
            if all(_equal(a, b) for a, b in zip(before, after, strict=True)):
                found[place] = tensor
        return found

    def extra_repr(self) -> str:
        return f"dependencies={self.dependencies!r}"


def auto_guide(
    model: Any,
    example: Any,
    encoder: nn.Module | None = None,
    *,
    plate: str = "data",
    dependencies: Dependencies = "mean-field",
    family: str = "normal",
) -> AutoGuide:
    r"""Returns an amortized guide that follows from a model alone.

    .. math:: q(z|x) = \prod_s q(z_s | h(x), u_{<s}), \qquad z_s = T_s(u_s)

    Each latent site inside the plate over data has a distribution in unconstrained space, pushed onto the site's
    support by the bijection T_s. A network reads its parameters from the features h(x) of the datum. Inner plates,
    masks and scales are those of the model. Latent sites outside the plate have independent Normals with free
    parameters. Sites that are marked ``infer={"enumerate": "parallel"}`` are left out: they are summed over. At the
    start, each q is near a standard Normal in unconstrained space.

    The encoder reads all observed values of a datum side by side, then the other tensors of the batch (covariates),
    then the masks as 0 and 1. Hidden cells are 0. The default encoder has one hidden layer of tanh units, and its
    inputs are standardised by the example's means and standard deviations. Thus counts of any size do not saturate
    it; pass an example of some hundred data. An encoder of your own receives the values as they are.

    Each call runs the model once without gradients, in evaluation mode, at constant values of its latents, since the
    observed values, masks and plates of a batch are known to the model alone. Compiled training does not pay for the
    rest of this run. The guide is a module: it works in a `Program` and in Pyro's own ``SVI``. It keeps the model, so
    it can be pickled if the model can.

    Do not use it where a support, a mask or an observed value depends on a latent: it is refused. "mean-field" has a
    bound below log p(x) by the dependence between the latents of a datum.

    Arguments:
        model: p(x, z): a function or a module of one argument, the batch.
        example: A batch of at least two data, of any form that `Program` takes.
        encoder: Network from ``(..., D)`` to features ``(..., F)``. Default: one hidden layer.
        plate: Name of the plate over data.
        dependencies: ``"mean-field"``: the sites are independent given x; ``"earlier"``: each site reads the
            unconstrained values of all sites before it too, in the order of the model.
        family: Of u_s, within a site: ``"normal"``, independent; ``"multivariate-normal"``, with a full covariance
            matrix; or a kind of `Flow` that takes the features: ``"maf"``, ``"nsf"``, ``"realnvp"``.

    Raises:
        InputError: For a model that cannot have such a guide; the message names the site and what to do.

    Reference: Kucukelbir et al., "Automatic differentiation variational inference", 2017, section 2.3, for the
    unconstrained space; Kingma and Welling, "Auto-encoding variational Bayes", 2014, for the amortization; Webb et al.,
    "Faithful inversion of generative models for effective amortized inference", 2018, for the dependencies.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_vae.program import Program
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(rate.unsqueeze(-1)).to_event(1), obs=x)
        >>> x = torch.poisson(torch.full((50, 3), 4.0))
        >>> program = Program(model, auto_guide(model, x), x)
        >>> program.log_weights(x[:5], num_particles=2).shape
        torch.Size([2, 5])
    """
    for name, value, allowed in (("dependencies", dependencies, get_args(Dependencies)), ("family", family, FAMILIES)):
        if value not in allowed:
            raise InputError(f"auto_guide: unknown {name} `{value}`; {near_match(str(value), allowed)}")
    if not callable(model) or isinstance(model, type):
        raise InputError(f"auto_guide: `model` is a function or a module of one argument, the batch; got `{model!r}`.")
    if encoder is not None and not isinstance(encoder, nn.Module):
        raise InputError(f"auto_guide: `encoder` is a module from (..., D) to features (..., F); got `{encoder!r}`.")
    form = Form(example, "auto_guide")
    batch = form.batch(example, "auto_guide", "example")
    runs = ModelRuns(model, form.given(batch))
    sites = guided_sites(runs.first, plate, batch.size)
    with Copies():
        runs.check(form.given(batch))
        with torch.no_grad(), pyro.get_param_store().scope():
            return AutoGuide(runs, form, batch, sites, encoder, dependencies, family)


def _like(encoder: nn.Module | None, sites: GuidedSites, form: Form) -> Tensor:
    """A tensor of the type and device of the guide's parameters: the encoder's, else the latents'."""
    of_encoder = () if encoder is None else encoder.parameters()
    latents = (value for value in sites.values.values() if value.is_floating_point())
    return next((t.detach().new_empty(()) for t in (*of_encoder, *latents)), form.like)


@contextmanager
def _around(node: Any, trace: Trace, plates: dict[str, Any]) -> Iterator[None]:
    """A block with the plates, the mask and the scale of a site of the model."""
    scale, mask = node["scale"], mask_of(node)
    with ExitStack() as stack:
        for frame in node["cond_indep_stack"]:
            if not frame.vectorized:
                continue
            if frame.name not in plates:
                full = frame.size if frame.full_size is None else frame.full_size
                subsample = None if full == frame.size else trace.nodes[frame.name]["value"]
                plates[frame.name] = pyro.plate(frame.name, full, subsample=subsample, dim=frame.dim)
            stack.enter_context(plates[frame.name])
            if frame.full_size is not None and frame.full_size != frame.size:
                scale = scale * frame.size / frame.full_size
        if isinstance(mask, Tensor):
            mask = mask.reshape(mask.shape[: mask.dim() - len(node["fn"].event_shape)])
        if mask is not None:
            stack.enter_context(poutine.mask(mask=mask))
        if isinstance(scale, Tensor) or scale != 1.0:
            stack.enter_context(poutine.scale(scale=scale))
        yield


def _beside(context: Tensor, more: Tensor) -> Tensor:
    """Two tensors side by side; their other dimensions broadcast."""
    shape = torch.broadcast_shapes(context.shape[:-1], more.shape[:-1])
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in (context, more)], dim=-1)


def _seen(trace: Trace) -> list[Any]:
    nodes = running.observed(trace).values()
    return [part for node in nodes for part in (node["value"], mask_of(node))]


def _equal(mine: Any, its: Any) -> bool:
    if not isinstance(mine, Tensor) or not isinstance(its, Tensor):
        return mine is its
    return mine.shape == its.shape and bool(((mine == its) | ((mine != mine) & (its != its))).all())
