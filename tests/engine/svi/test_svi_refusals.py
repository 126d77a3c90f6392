"""What CompiledSVI refuses: by name, with line and site, and with what works instead."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import EnergyDistance, JitTrace_ELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from svi_runs import adam, branches, free, fresh, location, second_step, steps
from torch import nn

from pyro_vae import CompiledSVI
from pyro_vae.engine import CaptureError
from pyro_vae.errors import InputError

_fresh = pytest.fixture(autouse=True)(fresh)


def reads(x):
    z, _ = location(x)
    pyro.factor("again", torch.tensor(z.item()))


def selects(x):
    location(x)
    draws = pyro.sample("draws", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    pyro.factor("chosen", draws[draws > 0].sum())


@pytest.mark.parametrize(
    ("model", "line"),
    [(branches, "if z > 0:  # decides"), (reads, "z.item()"), (selects, "draws[draws > 0]")],
)
def test_programs_that_are_no_list_of_operations_are_refused_by_line(model, line):
    with pytest.raises(CaptureError) as refused:
        second_step(model, torch.ones(3))
    assert line in str(refused.value)
    assert f"{model.__module__.rpartition('.')[2]}.py, line " in str(refused.value)


@pytest.mark.parametrize(
    ("loss", "message"),
    [(JitTrace_ELBO(), "pass `Trace_ELBO`"), (EnergyDistance(), "cannot be captured; use one of Trace_ELBO")],
)
def test_losses_that_cannot_be_captured_are_refused_by_name(loss, message):
    with pytest.raises(CaptureError, match=message):
        CompiledSVI(location, location, adam(), loss)
    CompiledSVI(location, location, adam(), loss, compile=False)


def test_unknown_modes_are_refused():
    with pytest.raises(InputError, match="`compile` is True, False or 'auto'; it is 'always'"):
        CompiledSVI(location, location, adam(), Trace_ELBO(), compile="always")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (np.ones(2**18), "`ndarray` of 2097152 bytes.*torch.as_tensor"),
        (object(), "`object`, whose contents may change"),
        (torch.ones(3, requires_grad=True), "requires a gradient.*detached"),
        (torch.eye(3).to_sparse(), "dense"),
    ],
)
def test_arguments_that_could_change_unseen_are_refused(argument, message):
    svi = CompiledSVI(location, AutoNormal(location), adam(), Trace_ELBO())
    with pytest.raises(CaptureError, match=message):
        svi.step(torch.ones(3), used=argument)


def test_a_module_that_pyro_does_not_train_is_refused_by_name():
    network = nn.Linear(1, 3)

    def model(x):
        location(network(x[:1]))

    with pytest.raises(CaptureError, match=r"`Linear.weight`, of shape \(3, 1\).*pyro.module"):
        second_step(model, torch.ones(3))
    network.requires_grad_(False)
    pyro.clear_param_store()
    assert np.isfinite(second_step(model, torch.ones(3)))


def test_a_second_module_of_the_same_name_is_refused():
    def model(network, x):
        pyro.module("network", network)
        location(network(x[:1]))

    second_step(model, nn.Linear(1, 3), torch.ones(3))
    with pytest.raises(CaptureError, match="under a name that no other module has"):
        second_step(model, nn.Linear(1, 3), torch.ones(3))


def test_a_decaying_average_baseline_is_refused_by_name():
    def guide(x):
        p = pyro.param("p", torch.tensor(0.5))
        pyro.sample("z", dist.Bernoulli(p), infer={"baseline": {"use_decaying_avg_baseline": True}})

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)

    with pytest.raises(CaptureError, match=r"assigns.*`__baseline_avg_downstream_cost_z`.*nn_baseline"):
        second_step(model, torch.ones(3), guide=guide, loss=TraceGraph_ELBO())


# ------------------------------------------------------------------ distributions whose own code depends on values

MISSING = torch.tensor([[1.0, float("nan")], [0.5, 2.0], [float("nan"), 0.3]]).double()


def angle(x, family=dist.VonMises):
    if family is dist.VonMises:
        value = pyro.sample("angle", family(0.0, 2.0))
    else:
        value = torch.atan2(*pyro.sample("angle", family(torch.tensor([0.0, 2.0]), 1.0).to_event(1)))
    pyro.sample("x", dist.Normal(value, 1.0).expand([3]).to_event(1), obs=torch.ones(3))


def of_angle(x, family=dist.VonMises):
    loc = pyro.param("loc", torch.tensor(0.5))
    pyro.sample(
        "angle", family(loc, 2.0) if family is dist.VonMises else family(torch.stack([loc, loc]), 1.0).to_event(1)
    )


def covariance(x, family=dist.Wishart):
    if family is dist.Wishart:
        tril = torch.linalg.cholesky(pyro.sample("covariance", family(torch.tensor(4.0), torch.eye(2))))
    else:
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        tril = scale.unsqueeze(-1) * pyro.sample("covariance", family(2, torch.tensor(1.0)))
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril), obs=torch.ones(2))


def of_covariance(x, family=dist.Wishart):
    pyro.sample("covariance", family(torch.tensor(5.0), pyro.param("scale", torch.eye(2))))


def missing(x, family=dist.NanMaskedNormal):
    loc = pyro.param("loc", torch.zeros(2))
    if family is dist.NanMaskedNormal:
        pyro.sample("x", family(loc, 1.0).expand([3, 2]).to_event(2), obs=x)
    else:
        pyro.sample("x", family(loc, 1.0).expand([3, 2]).mask(x.isfinite()).to_event(2), obs=x.nan_to_num())


def missing_together(x):
    loc = pyro.param("loc", torch.zeros(2))
    pyro.sample("x", dist.NanMaskedMultivariateNormal(loc, torch.eye(2)).expand([3]).to_event(1), obs=x)


def no_guide(x, family=None):
    return None


@pytest.mark.filterwarnings("ignore:Singular sample detected")  # torch says so of every draw
@pytest.mark.parametrize(
    ("model", "guide", "named", "instead"),
    [
        (angle, of_angle, "site `angle`, VonMises", "draws by rejection: take.* torch.atan2"),
        (covariance, of_covariance, "site `covariance`, Wishart", "until a matrix is definite: use LKJCholesky"),
        (
            missing,
            no_guide,
            "site `x`, NanMaskedNormal",
            r"use Normal\(...\).mask\(x.isfinite\(\)\) with obs=x.nan_to_num",
        ),
        (missing_together, no_guide, "site `x`, NanMaskedMultivariateNormal", "one masked Normal for each dimension"),
    ],
)
def test_distributions_that_look_at_values_are_refused_by_site_with_what_works_instead(
    model, guide, named, instead, monkeypatch
):
    with pytest.raises(CaptureError, match=f"{named}.*{instead}.*compile=False") as refused:
        second_step(model, MISSING, guide=guide)
    assert "Trace Shapes" not in str(refused.value)
    free(monkeypatch)
    svi = CompiledSVI(model, guide, adam(), Trace_ELBO(), compile="auto")
    with pytest.warns(UserWarning, match=named):
        steps(svi, 3, MISSING)


@pytest.mark.parametrize(
    ("model", "guide", "family"),
    [(angle, of_angle, dist.Normal), (covariance, None, dist.LKJCholesky), (missing, no_guide, dist.Normal)],
)
def test_what_is_recommended_instead_is_captured(model, guide, family):
    def chosen(x):
        return model(x, family)

    assert np.isfinite(second_step(chosen, MISSING, guide=guide and (lambda x: guide(x, family))))


def test_what_is_recommended_for_missing_cells_is_the_same_density():
    for values in (MISSING, torch.ones(3, 2)):
        pyro.clear_param_store()
        losses = [second_step(missing, values, guide=no_guide, compile=False)]
        pyro.clear_param_store()
        losses.append(second_step(lambda x: missing(x, dist.Normal), values, guide=no_guide))
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)


# ------------------------------------------------------------------ what would go wrong in silence


@pytest.mark.parametrize("seeded", [poutine.seed(location, 1), lambda x: (torch.manual_seed(1), location(x))[1]])
def test_a_program_that_seeds_itself_is_refused(seeded):
    with pytest.raises(CaptureError, match=r"site `z`.* draws from a seed that the program itself sets.*outside"):
        second_step(lambda x: location(x), torch.ones(3), guide=lambda x: seeded_guide(seeded, x))


def seeded_guide(seeded, x):
    with poutine.block(hide=["x"]):
        seeded(x)


def test_a_tensor_that_the_program_holds_and_changes_is_refused():
    calls = torch.tensor(1.0)

    def model(x):
        calls.add_(1.0)
        location(x)

    with pytest.raises(CaptureError, match=r"changed in place at .*`calls.add_\(1.0\)`.*make it a buffer"):
        second_step(model, torch.ones(3))


def test_a_view_of_a_parameter_that_the_program_holds_is_refused():
    linear = nn.Linear(3, 3)
    held = linear.weight.detach()[0]

    def model(x):
        pyro.module("linear", linear)
        pyro.sample("x", dist.Normal(linear(x) + held, 1.0).to_event(1), obs=x)

    with pytest.raises(CaptureError, match=r"shape \(3,\) that shares its memory with `linear\$\$\$weight`"):
        second_step(model, torch.ones(3), guide=lambda x: None)
