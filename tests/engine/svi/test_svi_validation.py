"""CompiledSVI validates distributions at each call as Pyro's SVI does, and changes nothing where it raises."""

import contextlib

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from svi_runs import TOLERANCE, adam, fresh
from torch import nn

from pyro_vae import CompiledSVI
from pyro_vae.engine import Lifted

_fresh = pytest.fixture(autouse=True)(fresh)

BITS = torch.tensor([1.0, 0.0, 1.0]).double()


def bits(x, scale=None):
    p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    pyro.sample("x", dist.Bernoulli(p).expand([3]).to_event(1), obs=x)


def classes(x, scale=None):
    logits = pyro.param("logits", torch.zeros(3))
    pyro.sample("x", dist.Categorical(logits=logits).expand([3]).to_event(1), obs=x)


def scaled(x, scale):
    pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.5)), scale).expand([3]).to_event(1), obs=x)


def masked(x, scale=None):
    """Missing cells: Pyro validates masked ones too."""
    base = dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0).expand([3])
    pyro.sample("x", base.mask(x.isfinite()).to_event(1), obs=x)


def waiting(x, scale):
    pyro.sample("x", dist.Geometric(probs=scale * pyro.param("p", torch.tensor(0.4))).expand([3]).to_event(1), obs=x)


def correlated(x, scale):
    loc = pyro.param("loc", torch.zeros(3))
    pyro.sample("x", dist.MultivariateNormal(loc, covariance_matrix=torch.diag(scale)), obs=x)


ONE = torch.tensor(1.0).double()
INVALID = {
    "a value outside the support": (bits, (BITS, ONE), (3 * BITS, ONE), "support .Boolean"),
    "no whole class": (classes, (2 * BITS, ONE), (1.5 * BITS, ONE), "support .IntegerInterval"),
    "no class": (classes, (2 * BITS, ONE), (7 * BITS, ONE), "support .IntegerInterval"),
    "a parameter": (scaled, (BITS, ONE), (BITS, -ONE), "Expected parameter scale"),
    "a masked value": (masked, (BITS, ONE), (BITS / BITS, ONE), "support .Real"),
    "a check of its own": (waiting, (BITS, ONE), (BITS, 0 * ONE), "to be positive"),
    "a check in steps": (correlated, (BITS, ONE.expand(3)), (BITS, -ONE.expand(3)), "PositiveDefinite"),
}


def run(kind, model, good, bad, call="step"):
    """The losses of four valid calls, the error of an invalid one, and the losses and parameters after two more."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    svi = kind(model, lambda *_: None, adam(), Trace_ELBO())
    losses = [getattr(svi, call)(*good) for _ in range(4)]
    with pytest.raises(ValueError, match="Expected") as raised:
        getattr(svi, call)(*bad)
    losses += [getattr(svi, call)(*good) for _ in range(2)]
    values = [value.detach().clone() for value in pyro.get_param_store().values()]
    assert kind is SVI or svi.compiled == 1
    return torch.tensor(losses), values, str(raised.value)


@pytest.mark.parametrize("call", ["step", "evaluate_loss"])
@pytest.mark.parametrize("name", INVALID)
def test_what_pyro_finds_invalid_raises_its_error_and_changes_nothing(name, call):
    model, good, bad, message = INVALID[name]
    losses, values, error = run(SVI, model, good, bad, call)
    own_losses, own_values, own_error = run(CompiledSVI, model, good, bad, call)
    assert message in error.replace("(", ".")
    assert own_error == error
    torch.testing.assert_close(own_losses, losses, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(own_values, values, rtol=TOLERANCE, atol=TOLERANCE)


def test_real_compilation_validates_too(monkeypatch):
    from pyro_vae.engine.compilation import backend

    monkeypatch.setattr(backend, "_interpreted", False)
    for name in ("a value outside the support", "no class"):
        model, good, bad, _ = INVALID[name]
        assert run(CompiledSVI, model, good, bad)[2] == run(SVI, model, good, bad)[2]


def test_without_validation_in_pyro_there_is_none():
    with pyro.validation_enabled(False):
        losses = {}
        for kind in (SVI, CompiledSVI):
            pyro.clear_param_store()
            svi = kind(bits, lambda *_: None, adam(), Trace_ELBO())
            losses[kind] = torch.tensor([svi.step(BITS if i < 3 else 3 * BITS) for i in range(6)])
    torch.testing.assert_close(losses[CompiledSVI], losses[SVI], rtol=TOLERANCE, atol=TOLERANCE)


def test_validation_may_be_turned_on_later():
    svi = CompiledSVI(bits, lambda *_: None, adam(), Trace_ELBO())
    with pyro.validation_enabled(False):
        for _ in range(3):
            svi.step(3 * BITS)
    for _ in range(3):
        svi.step(BITS)
    with pytest.raises(ValueError, match="within the support"):
        svi.step(3 * BITS)
    assert svi.compiled == 2


def test_a_distribution_made_to_validate_does_so_whatever_the_setting():
    prior = dist.Bernoulli(torch.full((3,), 0.3), validate_args=True).to_event(1)

    def model(x):
        pyro.param("p", torch.tensor(0.5))
        pyro.sample("x", prior, obs=x)
        pyro.sample("y", dist.Normal(pyro.param("p"), 1.0), obs=x[0])

    with pyro.validation_enabled(False):
        svi = CompiledSVI(model, lambda x: None, adam(), Trace_ELBO())
        for _ in range(3):
            svi.step(BITS)
        with pytest.raises(ValueError, match="within the support"):
            svi.step(3 * BITS)


def test_an_invalid_draw_that_does_not_come_again_is_an_error_all_the_same():
    """Here a draw decides what is valid, so the error can only be repeated by chance."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Uniform(-4.0 + 0 * z, 4.0 + z - z.detach()).mask(z < 8), obs=x * (z < 3.5))

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    svi = CompiledSVI(model, guide, adam(), Trace_ELBO())
    for _ in range(3):
        svi.step(torch.tensor(1.0))
    with pytest.raises(ValueError, match="support"):
        svi.step(torch.tensor(5.0))


def test_batch_statistics_stay_where_a_value_is_invalid():
    network = nn.BatchNorm1d(3)

    def model(x):
        pyro.module("network", network)
        pyro.sample("x", dist.Bernoulli(logits=network(x)).to_event(2), obs=x)

    x = (torch.randn(5, 3) > 0).double()
    svi = CompiledSVI(model, lambda x: None, adam(), Trace_ELBO())
    for _ in range(2):
        with Lifted():
            svi.step(x)
            svi.evaluate_loss(x)
    assert svi.compiled == 2
    before = [b.clone() for b in network.buffers()]
    for call in (svi.step, svi.evaluate_loss):
        with pytest.raises(ValueError, match="support"):
            call(3 * x)
    assert all(torch.equal(a, b) for a, b in zip(before, network.buffers(), strict=True))


def test_validation_leaves_the_random_state_alone():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=z).to_event(1), obs=x)

    svi = CompiledSVI(model, AutoNormal(model), adam(), Trace_ELBO())
    for _ in range(3):
        svi.step(BITS)
    states = []
    for x in (BITS, 3 * BITS):
        torch.manual_seed(4)
        with contextlib.suppress(ValueError):
            svi.step(x)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
