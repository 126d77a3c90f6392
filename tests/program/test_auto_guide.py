"""A guide that follows from the model: it reaches exact posteriors, and its densities are those computed by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from programs import covariances, state_space
from pyro import poutine
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import Batch, Program, Training, auto_guide, fit
from pyro_vae.distributions.simplex import StickBreaking
from pyro_vae.evaluation import elbo, log_marginal
from pyro_vae.inference import AEVB, STL
from pyro_vae.training.schedules import cosine

LINEAR = LinearGaussian.random(3, 2, diagonal=False, seed=104)
X = LINEAR.sample(100)


def training(steps: int) -> Training:
    return Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.1), steps=steps, schedule=cosine(steps))


def gaussian(x: Tensor) -> None:
    """The linear-Gaussian model, without parameters."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ LINEAR.W.T + LINEAR.b, LINEAR.s).to_event(1), obs=x)


def gap_of_independent_normals(covariance: Tensor) -> Tensor:
    """KL from the best diagonal Normal to N(0, covariance)."""
    return 0.5 * (torch.linalg.inv(covariance).diagonal().log().sum() + covariance.logdet())


def trained(model: Any, data: Any, steps: int = 150, **options: Any) -> Program:
    torch.manual_seed(0)
    program = Program(model, auto_guide(model, data, **options), data)
    fit(program, data, AEVB(num_particles=8), training(steps), seed=0)
    return program


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("family", ["normal", "multivariate-normal"])
def test_the_elbo_reaches_log_p_of_x_up_to_the_gap_of_the_family(family) -> None:
    program = trained(gaussian, X, encoder=nn.Identity(), family=family)
    gap = gap_of_independent_normals(LINEAR.precision.inverse())
    assert float(gap) > 0.04
    exact = LINEAR.log_marginal(X).mean()
    assert elbo(program, X, 400).value == pytest.approx(float(exact - gap * (family == "normal")), abs=0.02)
    assert log_marginal(program, X, 500).value == pytest.approx(float(exact), abs=0.02)


@pytest.mark.parametrize("dependencies", ["mean-field", "earlier"])
def test_a_state_space_reaches_log_p_of_x_if_each_state_reads_the_states_before(dependencies) -> None:
    exact, model = state_space(3)
    states, observations = covariances(3, 0.8, 0.6, 0.5)
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(1)).double()
    gap = gap_of_independent_normals(states - states @ torch.linalg.inv(observations) @ states)
    assert float(gap) > 0.04
    program = trained(model, x, encoder=nn.Identity(), dependencies=dependencies)
    expected = exact(x).mean() - (gap if dependencies == "mean-field" else 0)
    assert elbo(program, x, 400).value == pytest.approx(float(expected), abs=0.02)


def supports(x: Tensor) -> None:
    """Sites of several supports, one of them in an inner plate."""
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))
        mix = pyro.sample("mix", dist.Dirichlet(x.new_ones(3)))
        share = pyro.sample("share", dist.Beta(x.new_ones(2), 2.0).to_event(1))
        with pyro.plate("cells", 4, dim=-2):
            w = pyro.sample("w", dist.LogNormal(x.new_zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.Normal(w.sum(-1), 1.0))
        loc = rate + mix[..., 0] + share.sum(-1) + y.sum(-2, keepdim=True)
        for j in range(2):
            pyro.sample(f"x_{j}", dist.Normal(loc.reshape(y[..., :1, :].shape), 1.0), obs=x[:, j])


DOUBLE = torch.randn(6, 2, generator=torch.Generator().manual_seed(3)).double()
ONTO = {
    "rate": torch.exp,
    "mix": StickBreaking(),
    "share": torch.sigmoid,
    "w": torch.exp,
    "y": lambda u: u,
}
SHAPES = {"rate": (), "mix": (2,), "share": (2,), "w": (2,), "y": ()}


@pytest.mark.parametrize("dependencies", ["mean-field", "earlier"])
def test_log_q_is_the_density_of_u_less_the_log_jacobian(dependencies) -> None:
    torch.manual_seed(0)
    guide = auto_guide(supports, DOUBLE, dependencies=dependencies)
    for parameter in guide.parameters():
        nn.init.normal_(parameter, 0.0, 0.1)
    trace = poutine.trace(guide).get_trace(DOUBLE)
    trace.compute_log_prob()
    features = guide.encoder(guide.input(guide.runs(DOUBLE), [DOUBLE]))
    reads: list[Tensor] = []
    for posterior in guide.local:
        name, shape = posterior.name, SHAPES[posterior.name]
        value = trace.nodes[name]["value"]
        context = torch.cat([features, *reads], -1)
        if posterior.hidden is not None:
            context = torch.cat([context, posterior.hidden(context)], -1)
        raw = posterior.head(context).reshape(6, *((4,) if name in ("w", "y") else ()), 2, -1)
        raw = raw.movedim(0, 1) if name in ("w", "y") else raw
        loc, scale = (part.reshape(value.shape[: value.dim() - len(shape)] + shape) for part in raw.unbind(-2))
        u = _inverse(name, value)
        normal = dist.Normal(loc, scale.exp()).log_prob(u)
        batch = u.shape[: u.dim() - len(shape)]
        jacobians = torch.stack(
            [_log_jacobian(ONTO[name], each.reshape(shape)) for each in u.reshape(-1, *shape).unbind()]
        ).reshape(batch)
        by_hand = (normal.sum(-1) if shape else normal) - jacobians
        torch.testing.assert_close(trace.nodes[name]["log_prob"], by_hand, rtol=1e-9, atol=1e-9)
        if dependencies == "earlier":
            reads.append((u.movedim(1, 0) if name in ("w", "y") else u).reshape(6, -1))


def _inverse(name: str, value: Tensor) -> Tensor:
    inverse = {"mix": StickBreaking().inv, "share": torch.logit, "y": lambda v: v}
    return inverse.get(name, torch.log)(value)


def _log_jacobian(onto: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """log |det J| by automatic differentiation; for the simplex, of all cells but the last."""
    jacobian = torch.autograd.functional.jacobian(lambda v: onto(v)[..., : v.numel()] if v.dim() else onto(v), u)
    return jacobian.reshape(u.numel(), u.numel()).slogdet()[1]


@pytest.mark.parametrize("family", ["normal", "multivariate-normal", "maf"])
@pytest.mark.parametrize("dependencies", ["mean-field", "earlier"])
def test_k_particles_are_k_runs(family, dependencies) -> None:
    torch.manual_seed(0)
    program = Program(supports, auto_guide(supports, DOUBLE, family=family, dependencies=dependencies), DOUBLE)
    for parameter in program.parameters():
        nn.init.normal_(parameter, 0.0, 0.05)
    assert program.vectorized
    assert [site.name for site in program.sites] == ["rate", "mix", "share", "w", "y"]
    assert program.latent_shape == (1 + 3 + 2 + 4 * 2 + 4,)
    batch = program.check(DOUBLE)
    q = program.posterior_given(batch)
    z = q.rsample((3,))
    one_by_one = torch.stack([program.posterior_given(batch).log_prob(each.clone()) for each in z])
    torch.testing.assert_close(q.log_prob(z), one_by_one, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(q.log_prob(z.clone()), one_by_one, rtol=1e-9, atol=1e-9)
    joint = torch.stack([program.log_joint_of(each, batch) for each in z])
    torch.testing.assert_close(program.log_joint_of(z, batch), joint, rtol=1e-9, atol=1e-9)


def test_the_density_on_positive_numbers_integrates_to_one() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([0.0, 3.0]).double()
    program = Program(model, auto_guide(model, x, family="maf"), x)
    t = torch.linspace(-12, 12, 4001).double()
    z = t.exp().reshape(-1, 1, 1).expand(-1, 2, 1)
    density = program.posterior_given(program.check(x)).log_prob(z).exp()
    torch.testing.assert_close(torch.trapezoid(density * z[..., 0], t, dim=0), torch.ones(2).double())


def test_cells_of_an_inner_plate_reach_their_posteriors() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("cells", 3, dim=-1):
            w = pyro.sample("w", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(w, 0.5), obs=x)

    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(3)).double()
    program = trained(model, x, encoder=nn.Identity())
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(x).sum(-1).mean()
    assert elbo(program, x, 100).value == pytest.approx(float(exact), abs=0.02)


class Ragged(nn.Module):
    """Sequences of up to three numbers, of which those behind ``length`` are no data, with a covariate."""

    def forward(self, batch: dict[str, Tensor]) -> None:
        x, length = batch["x"], batch["length"]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(batch["shift"], 1.0))
            for t in range(3):
                with poutine.mask(mask=t < length):
                    noise = pyro.sample(f"noise_{t}", dist.Normal(x.new_tensor(0.0), 0.6))
                    pyro.sample(f"x_{t}", dist.Normal(z + noise, 0.8), obs=x[:, t])


def ragged() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x, shift = torch.randn(60, 3, generator=generator).double(), torch.randn(60, generator=generator).double()
    length = torch.arange(60) % 3 + 1
    x = torch.where(torch.arange(3) < length.unsqueeze(-1), x + shift.unsqueeze(-1), torch.nan)
    return {"x": x, "length": length, "shift": shift}


class MaskedFeatures(nn.Module):
    """The features from which the exact posterior is linear: products of the masks and all inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        count = inputs[..., 4:].sum(-1, keepdim=True)
        which = torch.nn.functional.one_hot(count.long().squeeze(-1) - 1, 3).to(inputs)
        products = which.unsqueeze(-1) * inputs[..., :4].unsqueeze(-2)
        return torch.cat([products.flatten(-2), which], -1)


def test_masks_of_latents_and_observations_and_covariates_are_those_of_the_model() -> None:
    data, model = ragged(), Ragged()
    guide = auto_guide(model, data, encoder=MaskedFeatures(), dependencies="earlier")
    assert guide.input.said == (
        "1 of x_0, 1 of x_1, 1 of x_2, 1 of tensor 2 of the batch, 1 of a mask, 1 of a mask, 1 of a mask"
    )
    for posterior in guide.local:
        posterior.hidden.requires_grad_(False) if posterior.hidden is not None else None
    data["x"].nan_to_num_()  # Pyro checks hidden values too
    program = Program(model, guide, data)
    fit(program, data, AEVB(num_particles=8), training(200), seed=0)
    exact = torch.stack(
        [
            dist.MultivariateNormal(s.expand(n), torch.eye(n).double() + 1).log_prob(x[:n])
            for x, s, n in zip(data["x"], data["shift"], data["length"].tolist(), strict=True)
        ]
    )
    assert elbo(program, data, 100).value == pytest.approx(float(exact.mean()), abs=0.02)


def test_hidden_cells_do_not_change_q() -> None:
    data = ragged()
    guide = auto_guide(Ragged(), data)
    other = {**data, "x": torch.where(data["x"].isnan(), 1e6, data["x"])}
    inputs = []
    for each in (data, other):
        trace = guide.runs(each)
        inputs.append(guide.input(trace, guide.form.tensors(guide.form.batch(each, ""))))
    assert torch.equal(*inputs)
    assert torch.equal(inputs[0][:, 4:], (torch.arange(3) < data["length"].unsqueeze(-1)).double())


def test_hidden_cells_of_a_batch() -> None:
    x = torch.randn(4, 3)
    mask = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) < 0.5

    def model(batch: Batch) -> None:
        with pyro.plate("data", batch.size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([4, 3]).mask(batch.mask).to_event(1), obs=batch.x)

    batch = Batch(x, mask=mask)
    guide = auto_guide(model, batch, encoder=nn.Identity())
    found = guide.input(guide.runs(batch), [x, mask])
    assert torch.equal(found, torch.cat([x * mask, mask.float()], -1))


def vae_model(decoder: nn.Module) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        shift = pyro.param("shift", x.new_zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z + shift), 1.0).to_event(1), obs=x)

    return model


def test_compiled_and_replicated_steps_are_the_uncompiled_ones() -> None:
    torch.manual_seed(0)
    model = vae_model(nn.Linear(2, 3).double())
    program = Program(model, auto_guide(model, X, dependencies="earlier", family="multivariate-normal"), X)
    runs = [copy.deepcopy(program) for _ in range(4)]
    start, steps = parameters(program), replace(training(6), schedule=None, batch_size=50)
    fit(runs[0], X, AEVB(num_particles=2), steps, seed=1)
    fit(runs[1], X, AEVB(num_particles=2), replace(steps, compile=True), seed=1)
    fit(runs[2:], X, AEVB(num_particles=2), replace(steps, compile=True), seed=[1, 2])
    assert float((parameters(runs[0]) - start).abs().max()) > 1e-2
    torch.testing.assert_close(parameters(runs[1]), parameters(runs[0]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parameters(runs[2]), parameters(runs[0]), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(parameters(runs[3]), parameters(runs[0]))
    assert torch.equal(parameters(program), start)


def test_a_captured_program_has_one_run_of_the_model() -> None:
    """The run of the model inside the guide leaves no matrix product: encoder, head and decoder have one each."""
    model = vae_model(nn.Linear(2, 3).double())
    program = Program(model, auto_guide(model, X), X)
    with pyro.validation_enabled(False):
        captured = make_fx(lambda x: program.log_weights_of(Batch(x)))(X)
    captured.graph.eliminate_dead_code()
    assert sum("mm" in str(node.target) for node in captured.graph.nodes) == 3


def test_parameters_of_the_model_are_not_those_of_the_guide() -> None:
    decoder = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    model = vae_model(decoder)
    guide = auto_guide(model, X)
    with pytest.warns(UserWarning, match="several particles do not run at once"):  # because of the batch norm
        program = Program(model, guide, X)
    assert {id(p) for p in program.phi.values()} == {id(p) for p in guide.parameters()}
    assert {id(p) for p in decoder.parameters()} < {id(p) for p in program.theta.values()}
    assert len(program.theta) == 5
    assert not list(pyro.get_param_store())
    decoder.train()
    before = decoder[1].running_mean.clone()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        guide(X)
        after_guide = torch.rand(())
        torch.manual_seed(0)
        torch.normal(torch.zeros(100, 2).double(), 1.0)
        assert torch.rand(()) == after_guide  # the run of the model draws nothing
    assert torch.equal(decoder[1].running_mean, before)
    assert decoder.training


def test_the_guide_trains_in_svi() -> None:
    torch.manual_seed(0)
    guide = auto_guide(gaussian, X, family="multivariate-normal")
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    bound = pyro.infer.Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.1 * cosine(150)(step)
        optimizer.zero_grad()
        (bound.differentiable_loss(gaussian, guide, X) / 100).backward()
        optimizer.step()
    program = Program(gaussian, guide, X)
    assert elbo(program, X, 400).value == pytest.approx(float(LINEAR.log_marginal(X).mean()), abs=0.02)


def mixed_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(3.0 * k, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_enumerated_sites_are_left_out() -> None:
    x = torch.tensor([0.1, 2.5, 3.5])
    guide = pickle.loads(pickle.dumps(auto_guide(mixed_model, x)))
    trace = poutine.trace(guide).get_trace(x)
    assert [name for name, node in trace.nodes.items() if node["type"] == "sample"] == ["data", "z"]
    replayed = poutine.replay(guide, trace=trace)
    found = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(mixed_model, replayed, x)
    z = trace.nodes["z"]["value"]
    prior = 0.3 * dist.Normal(0.0, 1.0).log_prob(z).exp() + 0.7 * dist.Normal(3.0, 1.0).log_prob(z).exp()
    trace.compute_log_prob()
    by_hand = prior.log() + dist.Normal(z, 1.0).log_prob(x) - trace.nodes["z"]["log_prob"]
    assert found == pytest.approx(-by_hand.sum().item(), rel=1e-5)


def test_sites_that_all_data_share_have_free_parameters() -> None:
    """mu ~ N(0, 1), z_i ~ N(mu, 1), x_i ~ N(z_i, 1): mu given x is N(sum x / (N + 2), 2 / (N + 2))."""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(30, generator=torch.Generator().manual_seed(2)).double() + 1
    guide = auto_guide(model, x, encoder=nn.Unflatten(-1, (1,)), dependencies="earlier")
    assert len(guide.shared) == 1
    for posterior in guide.local:
        posterior.hidden.requires_grad_(False)
    program = Program(model, guide, x, size=30)
    fit(program, x, STL(num_particles=8), training(200), seed=0)
    mu = guide.shared[0]
    assert mu.loc.item() == pytest.approx(float(x.sum()) / 32, abs=0.03)
    assert mu.log_scale.exp().item() == pytest.approx((2 / 32) ** 0.5, abs=0.02)


def test_counts_of_any_size_start_near_a_standard_normal() -> None:
    x = torch.poisson(torch.logspace(0, 7, 20).unsqueeze(-1).expand(20, 4), generator=torch.Generator().manual_seed(0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(z.sum(-1, keepdim=True).exp().expand(-1, 4)).to_event(1), obs=x)

    q = poutine.trace(auto_guide(model, x)).get_trace(x).nodes["z"]["fn"].base_dist
    assert float(q.loc.detach().abs().max()) < 0.1
    assert float((q.scale.detach() - 1).abs().max()) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["maf", "nsf", "realnvp"])
def test_a_flow_reaches_the_exact_posterior(kind) -> None:
    program = trained(gaussian, X, 1200 if kind == "nsf" else 300, encoder=nn.Identity(), family=kind)
    assert elbo(program, X, 200).value == pytest.approx(float(LINEAR.log_marginal(X).mean()), abs=0.02)


def test_a_scale_and_obs_mask_of_the_model_are_those_of_the_guide() -> None:
    """log q is scaled as log p is; the value that obs_mask hides is a latent, masked where it is observed."""
    known = torch.tensor([True, False, True, False])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=known)

    x = torch.randn(4).double()
    guide = auto_guide(model, x)
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    z, hidden = trace.nodes["z"], trace.nodes["x_unobserved"]
    torch.testing.assert_close(z["log_prob"], 0.3 * z["fn"].log_prob(z["value"]))
    torch.testing.assert_close(hidden["log_prob"], ~known * hidden["fn"].log_prob(hidden["value"]))
    observed = guide.input(guide.runs(x), [x])
    assert torch.equal(observed[:, -1].bool(), known)
    assert bool((observed[~known, 0] == 0).all())
