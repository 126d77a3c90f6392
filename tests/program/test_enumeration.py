"""Discrete sites that a program sums out, against sums over all their values by hand."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor
from torch.distributions import constraints
from z_test import assert_mean

from pyro_vae import Training, auto_guide, fit
from pyro_vae.errors import InputError
from pyro_vae.evaluation import elbo, latent_kl, log_marginal, simulation_based_calibration, site_probabilities
from pyro_vae.inference import AEVB, ALGORITHMS, IWAE, RWS, DReG
from pyro_vae.program import Program
from pyro_vae.runtime.random_streams import isolated

LOCS = torch.tensor([-2.0, 0.0, 3.0]).double()
LOGITS = torch.tensor([0.1, 0.2, -0.4]).double()
X = torch.tensor([-1.0, 0.5, 3.0, 7.0]).double()
STEPS = Training(optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), steps=6, batch_size=2)
ENUMERATED = {"enumerate": "parallel"}


def mixture(x: Tensor) -> None:
    """k ~ Categorical, z ~ N(loc_k, 1), x ~ N(z, 0.5²)."""
    logits = pyro.param("logits", LOGITS)
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(logits=logits), infer=ENUMERATED)
        z = pyro.sample("z", dist.Normal(LOCS[k], 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def guide(x: Tensor) -> None:
    weight = pyro.param("weight", x.new_tensor(0.7))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(weight * x, 0.6))


def log_prior(z: Tensor) -> Tensor:
    pairs = zip(LOCS, LOGITS.log_softmax(0), strict=True)
    return torch.stack([dist.Normal(loc, 1.0).log_prob(z) + weight for loc, weight in pairs]).logsumexp(0)


def log_mixture(x: Tensor) -> Tensor:
    """log p(k, x), shape ``(B, 3)``."""
    scale = math.sqrt(1.25)
    return torch.stack([dist.Normal(loc, scale).log_prob(x) for loc in LOCS], -1) + LOGITS.log_softmax(0)


def test_densities_are_sums_over_the_site() -> None:
    program = Program(mixture, guide, X[:2])
    assert program.enumerated_sites == ("k",)
    assert [site.name for site in program.sites] == ["z"]
    batch = program.check(X)
    q = program.posterior_given(batch)
    z = q.sample((5,))
    prior, likelihood = log_prior(z[..., 0]), dist.Normal(z[..., 0], 0.5).log_prob(X)
    torch.testing.assert_close(program.prior_given(batch).log_prob(z), prior, rtol=0, atol=1e-12)
    torch.testing.assert_close(program.log_likelihood_of(z, batch), likelihood, rtol=0, atol=1e-12)
    torch.testing.assert_close(program.log_joint_of(z, batch), prior + likelihood, rtol=0, atol=1e-12)
    one_by_one = torch.stack([program.log_joint_of(each, batch) for each in z])
    torch.testing.assert_close(one_by_one, prior + likelihood, rtol=0, atol=1e-12)
    torch.testing.assert_close(q.kl(program.prior_given(batch), z), q.log_prob(z) - prior, rtol=0, atol=1e-12)
    p = program.prior_given(batch)
    drawn = p.sample((2,))
    torch.testing.assert_close(p.log_prob(drawn), log_prior(drawn[..., 0]), rtol=0, atol=1e-12)


def test_log_p_of_data_and_probabilities_of_the_site() -> None:
    program = Program(mixture, guide, X[:2])
    exact = log_mixture(X)
    estimate = log_marginal(program, X, 4000)
    error = estimate.diagnostics["pointwise_error"]
    assert_mean(estimate.pointwise + estimate.diagnostics["bias"], exact.logsumexp(-1), error)
    found = site_probabilities(program, X, "k", 4000)
    torch.testing.assert_close(found, exact.softmax(-1), rtol=0, atol=0.02)


def drawn_mixture(x: Tensor) -> None:
    """The same model, its mixture summed by torch."""
    logits = pyro.param("logits", LOGITS)
    with pyro.plate("data", len(x)):
        components = dist.Normal(LOCS, x.new_tensor(1.0))
        z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits), components))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


REFUSED = {
    "analytic-kl": "the site `z` depends on an enumerated one",
    "mmd": "compares draws from the prior, and no gradient passes through draws",
}


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in ("enumeration", "autoencoder", "m2")])
def test_every_algorithm_has_the_losses_of_the_mixture_without_the_site(name: str) -> None:
    """Dreams draw other numbers, so that the sleep phases have other noise: the wake phases are compared."""
    programs = [Program(model, guide, X[:2], size=4) for model in (mixture, drawn_mixture)]
    options = {"mcem": {"transitions": 1, "updates": 1}, "rws": {"insomnia": 1.0}}
    algorithm = ALGORITHMS[name](**options.get(name, {}))
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            algorithm.check(programs[0])
        return
    values = []
    for program in programs:
        with isolated(5):
            loss = next(iter(copy.deepcopy(algorithm).losses(program, program.check(X))))
            moved = [p for p in program.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(loss.value, moved, allow_unused=True)
        values.append([loss.value.detach(), *(torch.zeros(()).double() if g is None else g for g in gradients)])
    for mine, its in zip(*values, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


def test_a_guide_that_follows_from_the_model_leaves_the_site_out() -> None:
    """The posterior of z is no Normal, so that the ELBO stays below log p(x), by little."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(1)).double() * 2
    program = Program(mixture, auto_guide(mixture, x), x)
    assert [site.name for site in program.sites] == ["z"]
    for parameter in program.theta.values():
        parameter.requires_grad_(False)
    fit(program, x, AEVB(4), Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.02), steps=300, batch_size=200))
    exact = log_mixture(x).logsumexp(-1).mean()
    bound = elbo(program, x, 200).value
    assert exact - 0.1 < bound < exact + 0.02


def test_the_elbo_is_that_of_pyros_enumeration() -> None:
    program = Program(mixture, guide, X[:2])
    with isolated(3):
        mine = AEVB().loss(program, program.check(X)).value
    batch = program.check(X)
    with isolated(3):
        its = TraceEnum_ELBO(max_plate_nesting=1).loss(program.model_of, program.guide_of, batch) / len(X)
    assert mine.item() == pytest.approx(its, rel=1e-12)


@pytest.mark.parametrize("algorithm", [AEVB(2), DReG(), RWS(insomnia=1.0)], ids=repr)
def test_compiled_and_replicated_steps_are_the_uncompiled_ones(algorithm: Any) -> None:
    program = Program(mixture, guide, X[:2])
    runs = [copy.deepcopy(program) for _ in range(4)]
    fit(runs[0], X, copy.deepcopy(algorithm), STEPS, seed=1)
    fit(runs[1], X, copy.deepcopy(algorithm), replace(STEPS, compile=True), seed=1)
    fit(runs[2:], X, algorithm, replace(STEPS, compile=True), seed=[1, 2])
    start, *found = [torch.cat([p.detach().flatten() for p in each.parameters()]) for each in (program, *runs)]
    assert float((found[0] - start).abs().max()) > 1e-2
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[2], found[0], rtol=1e-9, atol=1e-9)


def hidden_markov(x: Tensor) -> None:
    """Three states over time; a level z of each datum beside them."""
    transition = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        state: Any = 0
        for t in pyro.markov(range(x.shape[1])):
            state = pyro.sample(f"state_{t}", dist.Categorical(transition[state]), infer=ENUMERATED)
            pyro.sample(f"x_{t}", dist.Normal(LOCS[state] + z, 1.0), obs=x[:, t])


def test_a_hidden_markov_model_sums_over_all_sequences_of_states() -> None:
    transition = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double() * 2

    def first(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(1) / 2, x.new_tensor(0.7)))

    program = Program(hidden_markov, first, x[:2])
    assert program.vectorized
    z = program.posterior_given(program.check(x)).sample((3,))
    by_hand = []
    for states in itertools.product(range(3), repeat=4):
        path = [0, *states]
        weight = sum(transition[a, b].log() for a, b in itertools.pairwise(path))
        terms = [dist.Normal(LOCS[s] + z[..., 0], 1.0).log_prob(x[:, t]) for t, s in enumerate(states)]
        by_hand.append(weight + torch.stack(terms).sum(0))
    exact = torch.stack(by_hand).logsumexp(0)
    torch.testing.assert_close(program.log_likelihood_of(z, program.check(x)), exact, rtol=0, atol=1e-12)
    paths = torch.stack(by_hand).softmax(0)
    of_second = [
        sum(p for p, path in zip(paths, itertools.product(range(3), repeat=4), strict=True) if path[1] == s)
        for s in range(3)
    ]
    found = program.log_probabilities_of("state_1", z, program.check(x)).exp()
    torch.testing.assert_close(found[..., 0, :], torch.stack(of_second, -1), rtol=0, atol=1e-12)


def test_a_site_in_an_inner_plate_is_summed_in_each_cell() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            with pyro.plate("cells", 3, dim=-2):
                k = pyro.sample("k", dist.Categorical(logits=LOGITS), infer=ENUMERATED)
                pyro.sample("x", dist.Normal(LOCS[k] + z, 1.0), obs=x.T)

    def first(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x.mean(1) / 2, x.new_tensor(0.7)))

    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double() * 2
    program = Program(model, first, x[:2])
    z = program.posterior_given(program.check(x)).sample((4,))
    joint = torch.stack([dist.Normal(loc + z, 1.0).log_prob(x) for loc in LOCS], -1) + LOGITS.log_softmax(0)
    found = program.log_likelihood_of(z, program.check(x))
    torch.testing.assert_close(found, joint.logsumexp(-1).sum(-1), rtol=0, atol=1e-12)
    of_cells = program.log_probabilities_of("k", z, program.check(x)).exp()
    torch.testing.assert_close(of_cells, joint.softmax(-1), rtol=0, atol=1e-12)
    assert site_probabilities(program, x, "k", 10).shape == (5, 3, 3)
    one = program.log_likelihood_of(z[:, :1], program.check(x[:1]))  # one datum: its dimension has size 1
    torch.testing.assert_close(one, found[:, :1], rtol=0, atol=1e-12)


def test_a_mixture_whose_locations_have_a_posterior() -> None:
    """No local latent but the assignment: z holds what all data share, as in Pyro's tutorial on mixtures."""

    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(x.new_tensor(0.0), 3.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights), infer=ENUMERATED)
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def point(x: Tensor) -> None:
        weights = pyro.param("share", x.new_tensor([0.4, 0.6]), constraint=constraints.simplex)
        pyro.sample("weights", dist.Delta(weights, event_dim=1))
        locs, scale = pyro.param("loc", x.new_tensor([-1.0, 2.0])), pyro.param("scale", x.new_tensor(0.1).log())
        with pyro.plate("components", 2):
            pyro.sample("locs", dist.Normal(locs, scale.exp()))

    x = torch.cat([torch.randn(30) - 3, torch.randn(60) + 3]).double()
    program = Program(model, point, x[:4], size=90)
    given = program.at_globals(seed=2)
    weights, locs = (given._fixed[name] for name in ("weights", "locs"))
    joint = torch.stack([dist.Normal(loc, 1.0).log_prob(x) for loc in locs], -1) + weights.log()
    found = log_marginal(program, x, 10, seed=2)
    torch.testing.assert_close(found.pointwise, joint.logsumexp(-1), rtol=0, atol=1e-10)
    torch.testing.assert_close(site_probabilities(program, x, "k", 2, seed=2), joint.softmax(-1), rtol=0, atol=1e-10)
    training = Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.05), steps=200, batch_size=90)
    fit(program, x, AEVB(), replace(training, compile=True))
    fitted = program.at_globals()._fixed
    torch.testing.assert_close(fitted["weights"], x.new_tensor([1 / 3, 2 / 3]), rtol=0, atol=0.05)
    torch.testing.assert_close(fitted["locs"], torch.stack([x[:30].mean(), x[30:].mean()]), rtol=0, atol=0.5)


def test_labels_of_some_data() -> None:
    """y is known for some: a factor takes the other values out; the class of the rest is exact."""

    def model(batch: dict[str, Tensor]) -> None:
        x, label = batch["x"], batch["label"]
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=LOGITS), infer=ENUMERATED)
            with pyro.poutine.mask(mask=label >= 0):
                pyro.factor("label", torch.where(y == label, 0.0, -torch.inf).to(x))
            z = pyro.sample("z", dist.Normal(LOCS[y], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def first(batch: dict[str, Tensor]) -> None:
        guide(batch["x"])

    data = {"x": X, "label": torch.tensor([-1, 0, 2, -1])}
    program = Program(model, first, data)
    joint = log_mixture(X)
    exact = torch.where(data["label"] < 0, joint.logsumexp(-1), joint.gather(-1, data["label"].clamp(0)[:, None])[:, 0])
    estimate = log_marginal(program, data, 4000)
    error = estimate.diagnostics["pointwise_error"]
    assert_mean(estimate.pointwise + estimate.diagnostics["bias"], exact, error)
    found = site_probabilities(program, data, "y", 1000)
    torch.testing.assert_close(found[1:3], torch.eye(3).double()[[0, 2]])
    torch.testing.assert_close(found[[0, 3]], joint.softmax(-1)[[0, 3]], rtol=0, atol=0.05)
    gradients = torch.autograd.grad(IWAE().loss(program, program.check(data)).value, list(program.parameters()))
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_the_kl_of_each_site_and_calibration() -> None:
    """Two latents that depend on one enumerated site: the terms add up to the log ratio."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            idle = pyro.sample("idle", dist.Normal(x.new_tensor(0.0), 1.0))
            k = pyro.sample("k", dist.Categorical(logits=LOGITS), infer=ENUMERATED)
            a = pyro.sample("a", dist.Normal(LOCS[k], 1.0))
            b = pyro.sample("b", dist.Normal(LOCS[k] + a, 1.0))
            pyro.sample("x", dist.Normal(b + idle, 0.5), obs=x)

    def first(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name in ("idle", "a", "b"):
                pyro.sample(name, dist.Normal(0.3 * x, 1.0))

    program = Program(model, first, X[:2])
    batch = program.check(X)
    q, p = program.posterior_given(batch), program.prior_given(batch)
    z = q.sample((3,))
    terms = q.kl_of_sites(p, z)
    idle, a, _ = z.unbind(-1)
    exact = dist.Normal(0.3 * X, 1.0).log_prob(a) - log_prior(a)
    torch.testing.assert_close(terms["a"], exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(terms["idle"], (0.3 * X).square().expand(3, -1) / 2, rtol=0, atol=1e-12)
    of_idle = dist.Normal(0.3 * X, 1.0).log_prob(idle) - dist.Normal(0.0, 1.0).log_prob(idle)
    ratio = q.log_prob(z) - p.log_prob(z)
    torch.testing.assert_close(sum(terms.values()) - terms["idle"] + of_idle, ratio, rtol=0, atol=1e-12)
    assert latent_kl(program, X, 3).names == ("idle", "a", "b")
    assert simulation_based_calibration(program, 10, 9).ranks.shape == (10, 3)


def test_what_is_no_enumerated_site_is_refused() -> None:
    program = Program(mixture, guide, X[:2])
    with pytest.raises(InputError, match=r"site_probabilities: `kk` is no enumerated site; did you mean `k`"):
        site_probabilities(program, X, "kk")


def test_one_particle_after_the_other_has_the_same_densities() -> None:
    def looped(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            (rows,) = pyro.sample("z", dist.Normal(0.7 * x, 0.6)).shape  # refuses a dimension of particles
            assert rows == len(x)

    with pytest.warns(UserWarning, match="do not run at once"):
        program = Program(mixture, looped, X[:2])
    batch = program.check(X)
    z = program.posterior_given(batch).sample((3,))
    exact = log_prior(z[..., 0]) + dist.Normal(z[..., 0], 0.5).log_prob(X)
    torch.testing.assert_close(program.log_joint_of(z, batch), exact, rtol=0, atol=1e-12)
    assert program.log_probabilities_of("k", z, batch).shape == (3, 4, 1, 3)


def _marked(fn: Any, infer: dict[str, Any], outside: bool = False, scale: float = 1.0) -> Any:
    def model(x: Tensor) -> None:
        k = pyro.sample("k", fn, infer=infer) if outside else None
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=scale):
            k = k if outside else pyro.sample("k", fn, infer=infer)
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z + k, 0.5), obs=x)

    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_marked(dist.Poisson(1.0), ENUMERATED), r"`k` is marked for enumeration, and Poisson.* no finite number of v"),
        (_marked(dist.Bernoulli(0.5), {"enumerate": "sequential"}), r"`k` has infer=.*'sequential'.*mark it by infer="),
        (_marked(dist.Bernoulli(0.5), {**ENUMERATED, "num_samples": 3}), r"`k` has infer=.*'num_samples': 3"),
        (
            _marked(dist.Bernoulli(0.5), ENUMERATED, outside=True),
            "`k` is marked .* outside the plate `data`; put it in",
        ),
        (
            _marked(dist.Bernoulli(0.5), ENUMERATED, scale=2.0),
            "the site `k` has a scale of its own.*leave poutine.scale",
        ),
    ],
)
def test_sites_that_cannot_be_summed_are_refused(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"Program: .*{message}"):
        Program(model, guide, X[:2])


def test_a_site_that_the_guide_draws_is_not_summed() -> None:
    def drawing(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=LOGITS))
            pyro.sample("z", dist.Normal(0.7 * x, 0.6))

    program = Program(mixture, drawing, X[:2])
    assert program.enumerated_sites == ()
    assert [site.name for site in program.sites] == ["k", "z"]
    z = program.posterior_given(program.check(X)).sample((3,))
    k = z[..., 0].long()
    exact = LOGITS.log_softmax(0)[k] + dist.Normal(LOCS[k], 1.0).log_prob(z[..., 1])
    exact = exact + dist.Normal(z[..., 1], 0.5).log_prob(X)
    torch.testing.assert_close(program.log_joint_of(z, program.check(X)), exact, rtol=0, atol=1e-12)
