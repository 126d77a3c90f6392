"""Parts of one's own: a forward is enough, and each optional attribute of the protocol is honoured."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae import VAE, Batch, Conditional, Fixed, Hierarchy, Learned, Network, Reads, Training, fit, mlp
from pyro_vae.errors import InputError
from pyro_vae.evaluation import elbo
from pyro_vae.experiment.to_spec import part_to_spec
from pyro_vae.inference import AEVB, WakeSleep
from pyro_vae.vae.data_check import check_values
from pyro_vae.vae.part import (
    blocks_of,
    column_names,
    emits_parameters,
    event_shape_of,
    needs_posterior,
    network_of,
    takes_offset,
)


class Own(nn.Module):
    """A Normal whose mean is a linear function of the context, or free; nothing but a forward."""

    def __init__(self, size: int, width: int | None = None) -> None:
        super().__init__()
        self.location = nn.Parameter(torch.zeros(size)) if width is None else nn.Linear(width, size)

    def forward(self, context: Tensor | None = None) -> Any:
        loc = self.location if context is None else self.location(context)
        return dist.Normal(loc, 1.0).to_event(1)


class OwnBits(nn.Module):
    """Bernoulli cells; nothing but a forward."""

    def __init__(self, cells: int, width: int) -> None:
        super().__init__()
        self.logits = nn.Linear(width, cells)

    def forward(self, context: Tensor) -> Any:
        return dist.Bernoulli(logits=self.logits(context)).to_event(1)


def own(**parts: nn.Module) -> VAE:
    return VAE(**{"prior": Own(2), "likelihood": OwnBits(6, 2), "posterior": Own(2, 6), **parts})


# ------------------------------------------------------------------ without any optional attribute


def test_a_forward_is_enough_to_train(x):
    vae = own()
    before, start = elbo(vae, x, num_samples=500).value, {n: p.detach().clone() for n, p in vae.named_parameters()}
    fit(vae, x, AEVB(), Training(epochs=60, batch_size=12, optimizer=lambda p: torch.optim.Adam(p, 0.1), compile=False))
    assert elbo(vae, x, num_samples=500).value > before + 0.3
    assert not any(torch.equal(p, start[name]) for name, p in vae.named_parameters())


def test_defaults_of_what_a_part_does_not_tell():
    part = Own(2)
    assert not needs_posterior(part)
    assert not takes_offset(part)
    assert not emits_parameters(part)
    assert column_names(part) is event_shape_of(part) is network_of(part) is None
    assert blocks_of(part) == blocks_of(part()) == {}


# ------------------------------------------------------------------ what a part tells


def test_needs_posterior(x):
    class OfPosterior(nn.Module):
        needs_posterior = True

        def forward(self, context: Tensor | None = None, *, posterior: nn.Module) -> Any:
            q = posterior(torch.zeros(6))
            return dist.Normal(q.mean, 2.0).to_event(1)

    vae = own(prior=OfPosterior())
    with torch.no_grad():
        vae.posterior.location.bias.fill_(3.0)
    assert torch.equal(vae.prior_given(None).mean, torch.full((2,), 3.0))
    assert vae.log_weights(x).shape == (1, 12)
    with pytest.raises(InputError, match="`OfPosterior` contains the posterior, so that neither"):
        WakeSleep().check(vae)
    with pytest.raises(InputError, match="`OfPosterior` is made of the posterior, which must be declared"):
        VAE(OfPosterior(), OwnBits(6, 2))


class WithOffset(OwnBits):
    takes_offset = True

    def forward(self, context: Tensor, offset: Tensor | None = None) -> Any:
        logits = self.logits(context)
        return dist.Bernoulli(logits=logits if offset is None else logits + offset).to_event(1)


def test_takes_offset(x):
    vae = own(likelihood=WithOffset(6, 2))
    z, offset = torch.randn(12, 2), torch.randn(12, 1)
    shifted = dist.Bernoulli(logits=vae.likelihood.logits(z) + offset).to_event(1)
    assert torch.equal(vae.log_likelihood(z, Batch(x, offset=offset)), shifted.log_prob(x))
    assert takes_offset(vae.likelihood)
    assert takes_offset(Reads(vae.likelihood, "z1"))
    assert not takes_offset(Reads(OwnBits(6, 2), "z1"))


def test_an_offset_for_a_likelihood_that_takes_none_is_refused(x):
    batch = Batch(x, offset=torch.randn(12, 1))
    for call in (own().check, own().log_weights, lambda data: AEVB().loss(own(), data)):
        with pytest.raises(InputError, match=r"has an offset, but the likelihood `OwnBits` takes none; .*takes_offset"):
            call(batch)


def test_column_names(x):
    class Named(OwnBits):
        column_names = tuple("abcdef")

    frame = pd.DataFrame({name: x[:, "abcdef".index(name)].numpy() for name in "fbdace"})
    reading = own(prior=Layered(), likelihood=Reads(Named(6, 2), "z1"), posterior=LayeredGivenX())
    for vae in (own(likelihood=Named(6, 2)), reading):
        assert torch.equal(vae.check(frame).x, x)
        with pytest.raises(InputError, match=r"has the columns `fb`, .* and the likelihood `a`, `b`"):
            vae.check(frame.rename(columns={"f": "fb"}))
    assert torch.equal(own().check(frame).x, x[:, [5, 1, 3, 0, 2, 4]])


def test_event_shape():
    class Shaped(Own):
        event_shape = (2,)

    prior = Hierarchy(z2=Shaped(2), z1=Conditional(dist.Normal, (3,), given=nn.Linear(2, 3)))
    assert prior().sample((4,)).shape == (4, 5)
    with pytest.raises(InputError, match=r"`z2` must be a module with an attribute event_shape .* got `Own` with None"):
        Hierarchy(z2=Own(2), z1=Shaped(2, 2))


class Layered(Own):
    """Two layers of one latent each, in one Normal."""

    blocks: ClassVar = {"z1": slice(0, 2), "z2": slice(2, 3)}

    def __init__(self, width: int | None = None) -> None:
        super().__init__(3, width)

    def forward(self, context: Tensor | None = None) -> Any:
        distribution = super().forward(context)
        distribution.blocks = self.blocks
        return distribution


class LayeredGivenX(Layered):
    def __init__(self) -> None:
        super().__init__(6)


def test_blocks():
    vae = own(prior=Layered(), likelihood=Reads(OwnBits(6, 2), "z1"), posterior=LayeredGivenX())
    z = torch.randn(4, 3)
    assert torch.equal(vae.decode(z).mean, vae.likelihood(z[:, :2]).mean)

    class Other(LayeredGivenX):
        blocks: ClassVar = {"z1": slice(0, 1), "z2": slice(1, 3)}

    with pytest.raises(InputError, match=r"prior's layers are z1 \(2\), z2 \(1\), the posterior's z1 \(1\), z2 \(2\)"):
        own(prior=Layered(), likelihood=Reads(OwnBits(6, 2), "z1"), posterior=Other())
    with pytest.raises(InputError, match="reads `z1`, and the prior `Own` has no such layer"):
        own(likelihood=Reads(OwnBits(6, 2), "z1"))


class WithNetwork(nn.Module):
    """Bernoulli cells from a network that it tells."""

    def __init__(self, width: int, head: bool = True) -> None:
        super().__init__()
        self.given = mlp(width, 7, 5) if head else mlp(width, 6)
        self.head = nn.Linear(5, 6) if head else None

    def forward(self, context: Tensor) -> Any:
        features = self.given(context)
        return dist.Bernoulli(logits=features if self.head is None else self.head(features)).to_event(1)

    def to_spec(self) -> dict[str, Any]:
        return {"family": "Bernoulli"}


def test_given_is_the_network_of_a_likelihood_and_of_one_that_reads_some_layers():
    reads = Reads(WithNetwork(2), "z1")
    assert network_of(reads) is reads.likelihood.given
    assert "given.0.weight" not in reads.state_dict()  # it is held once
    # The network of a posterior that is left out has its hidden layers in reverse.
    for prior, likelihood in ((Own(2), WithNetwork(2)), (Layered(), reads)):
        assert VAE(prior, likelihood).posterior.given.hidden == (5, 7)
    for prior, likelihood in ((Own(2), WithNetwork(9)), (Layered(), Reads(WithNetwork(9), "z1"))):
        with pytest.raises(InputError, match=r"its network takes 9 features and gets 2 \(2 latents"):
            VAE(prior, likelihood)


def test_head_and_to_spec():
    assert part_to_spec(WithNetwork(2)) == {"family": "Bernoulli", "network": {"mlp": [7, 5]}}
    with pytest.raises(InputError, match="a linear layer stands on `mlp`, and this `WithNetwork` has head=None"):
        part_to_spec(WithNetwork(2, head=False))
    with pytest.raises(InputError, match="`OwnBits` has no name in an experiment file"):
        part_to_spec(OwnBits(6, 2))


# ------------------------------------------------------------------ what a family tells


class Sticks(dist.Categorical):
    """A Categorical that tells the number of its levels, and which posterior it wants."""

    posterior_family = dist.OneHotCategorical

    def __init__(self, probs: Tensor, levels: int, validate_args: bool | None = None) -> None:
        assert probs.shape[-1] == levels
        super().__init__(probs, validate_args=validate_args)

    arg_constraints: ClassVar = {"probs": constraints.simplex}

    @staticmethod
    def parameter_shapes(levels: int = 3) -> dict[str, tuple[int, ...]]:
        return {"probs": (levels,)}

    @staticmethod
    def constants_for(event_shape: torch.Size) -> dict[str, Any]:
        return {"levels": 4}

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return super().expand(batch_shape, self._get_checked_instance(Sticks, _instance))


def test_parameter_shapes_and_constants_for():
    implied = Conditional(Sticks, (6,), given=nn.Linear(2, 3))
    assert implied.network_sizes == {"probs": 6 * 4}
    assert implied(torch.zeros(5, 2)).base_dist.probs.shape == (5, 6, 4)
    named = Conditional(Sticks, (6,), probs=Learned(), levels=Fixed(5))
    assert named().base_dist.probs.shape == (6, 5)
    plain = Conditional(dist.Categorical, (6,), given=nn.Linear(2, 3), logits=Network((4,)))
    assert plain.network_sizes == {"logits": 6 * 4}


@pytest.mark.parametrize(("family", "advised"), [(Sticks, "OneHotCategorical"), (dist.Categorical, "dist.Categorical")])
def test_posterior_family_is_advised(family, advised):
    prior = Conditional(family, (2,), **({} if family is Sticks else {"logits": Learned(0.0, shape=(2, 4))}))
    with pytest.raises(InputError, match=rf"no posterior follows .* pass posterior=Conditional\({advised}, \(2,\)"):
        VAE(prior, OwnBits(6, 2), mlp(6, 5))


class Halves(dist.TorchDistribution):
    """Three Normal cells and three Exponential ones."""

    arg_constraints: ClassVar = {}

    def __init__(self, loc: Tensor, seen: Tensor | None = None) -> None:
        self.loc, self.seen = loc, seen
        super().__init__(loc.shape[:-1], torch.Size((6,)), validate_args=False)

    @property
    def support(self) -> Any:
        return HalvesSupport()

    def log_prob(self, value: Tensor) -> Tensor:
        left, right = dist.Normal(self.loc, 1.0), dist.Exponential(self.loc.exp())
        cells = torch.cat([left.log_prob(value[..., :3]), right.log_prob(value[..., 3:])], -1)
        return (cells if self.seen is None else cells.where(self.seen, 0.0)).sum(-1)

    def observing(self, x: Tensor, mask: Tensor) -> tuple[Any, Tensor]:
        return Halves(self.loc, mask), x.where(mask, 1.0)


class HalvesSupport(constraints.Constraint):
    event_dim = 1
    names = tuple("abcdef")
    supports = (constraints.real,) * 3 + (constraints.nonnegative,) * 3

    def check_cells(self, value: Tensor) -> Tensor:
        return torch.cat([value[..., :3] == value[..., :3], value[..., 3:] >= 0], -1)

    def check(self, value: Tensor) -> Tensor:
        return self.check_cells(value).all(-1)


class HalvesGivenZ(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Linear(2, 3)

    def forward(self, context: Tensor) -> Halves:
        return Halves(self.loc(context))


def test_observing():
    vae, x, z = own(likelihood=HalvesGivenZ()), torch.rand(4, 6), torch.randn(4, 2)
    mask = torch.tensor([True, False, True, True, False, True]).expand(4, 6)
    hidden = x.where(mask, torch.nan)
    loc = vae.likelihood.loc(z)
    cells = torch.cat([dist.Normal(loc, 1.0).log_prob(x[:, :3]), dist.Exponential(loc.exp()).log_prob(x[:, 3:])], -1)
    assert torch.equal(vae.log_likelihood(z, Batch(hidden, mask=mask)), cells.where(mask, 0.0).sum(-1))


# ------------------------------------------------------------------ what a support tells


def test_check_cells_names_the_column():
    x = torch.ones(4, 6)
    x[2, 4] = -1.0
    x[2, 1] = -1.0
    with pytest.raises(InputError, match=r"row 2, column 4 .* GreaterThanEq.* of the likelihood of column `e`"):
        check_values(own(likelihood=HalvesGivenZ()), Batch(x), True)


def test_complaint_says_what_is_wrong():
    class Even(constraints.Constraint):
        is_discrete = True
        event_dim = 1

        def check(self, value: Tensor) -> Tensor:
            return value.sum(-1) % 2 == 0

        def complaint(self, value: Tensor) -> str:
            return f"sums to {value.sum():g}, which is odd"

    class Pairs(dist.Multinomial):
        support = Even()

    class PairsGivenZ(OwnBits):
        def forward(self, context: Tensor) -> Any:
            return Pairs(2, logits=self.logits(context))

    x = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
    vae = VAE(Own(2), PairsGivenZ(2, 2), Own(2, 2))
    with pytest.raises(InputError, match=r"row 1 .*sums to 3, which is odd, for the likelihood"):
        check_values(vae, Batch(x), True)


# ------------------------------------------------------------------ one place for every name

PACKAGE = Path(__file__).parents[2] / "pyro_vae"
PROTOCOLS = {"vae/part.py", "distributions/protocol.py", "networks/specification.py"}
OPTIONAL = {
    *("needs_posterior", "takes_offset", "column_names", "event_shape", "blocks", "given", "head", "to_spec"),
    *("parameter_shapes", "constants_for", "posterior_family", "observing", "check_cells", "complaint"),
}


def names_read() -> list[tuple[str, str]]:
    """Files, and the names of optional attributes that they read by getattr or hasattr."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                name = ast.unparse(node.args[1]).strip("'")
                found += [(str(path.relative_to(PACKAGE)), name)] if name in OPTIONAL else []
    return found


def test_optional_attributes_are_read_in_the_protocols_alone():
    read = names_read()
    assert sorted(name for path, name in read if path in PROTOCOLS) == sorted(OPTIONAL)
    assert not [each for each in read if each[0] not in PROTOCOLS]
