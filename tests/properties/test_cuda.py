"""Training, evaluation and the param store on a CUDA device."""

from __future__ import annotations

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluations import EVALUATIONS, X, numbers, vae_with_modes
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO

from pyro_vae import (
    VAE,
    Batch,
    Conditional,
    Fixed,
    Flow,
    Hierarchy,
    Learned,
    Mixture,
    Reads,
    SphericalUniform,
    Training,
    VampPrior,
    VonMisesFisher,
    conv_decoder,
    conv_encoder,
    fit,
    gated_mlp,
    mlp,
)
from pyro_vae.comparison.compare import compare
from pyro_vae.comparison.trained_vae import TrainedVAE
from pyro_vae.engine import Lifted
from pyro_vae.errors import InputError
from pyro_vae.evaluation import elbo, log_marginal
from pyro_vae.experiment import Experiment
from pyro_vae.inference import ALGORITHMS
from pyro_vae.training.fit import prepared

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _normal(size):
    return Conditional(dist.Normal, (size,), loc=Fixed(0.0), scale=Fixed(1.0))


MODELS = {
    "mlp": lambda: VAE(_normal(4), Conditional(dist.Bernoulli, (64,), given=mlp(4, 50)), mlp(64, 50)),
    "conv": lambda: VAE(
        _normal(4),
        Conditional(dist.Normal, (64,), given=conv_decoder(4, (1, 8, 8), 8), head=None, scale=Learned(0.5)),
        Conditional(dist.Normal, (4,), given=conv_encoder((1, 8, 8), 8)),
    ),
    "discrete": lambda: VAE(
        Conditional(dist.Bernoulli, (4,), logits=Learned(0.1, shape=(4,))),
        Conditional(dist.Bernoulli, (64,), given=mlp(4, 50)),
        Conditional(dist.Bernoulli, (4,), given=mlp(64, 50)),
    ),
    "bounded prior": lambda: VAE(
        Conditional(dist.Uniform, (4,), low=Fixed(0.0), high=Fixed(1.0)),
        Conditional(dist.ContinuousBernoulli, (64,), given=mlp(4, 50)),
    ),
    "mixture": lambda: VAE(
        Mixture(dist.Normal, (4,), 5),
        Conditional(dist.Bernoulli, (64,), given=mlp(4, 50)),
        Mixture(dist.Normal, (4,), 3, given=mlp(64, 50)),
    ),
    "vamp": lambda: VAE(
        VampPrior(64, 10, mean=0.3, support=constraints.unit_interval),
        Conditional(dist.Bernoulli, (64,), given=mlp(4, 50)),
        Conditional(dist.MultivariateNormal, (4,), given=mlp(64, 50)),
    ),
    "flow": lambda: VAE(
        Flow((4,), "nsf"),
        Conditional(dist.Bernoulli, (64,), given=mlp(4, 50)),
        Flow((4,), "maf", given=gated_mlp(64, 50)),
    ),
    "hierarchy": lambda: VAE(
        Hierarchy(z2=_normal(2), z1=Conditional(dist.Normal, (4,), given=mlp(2, 20))),
        Reads(Conditional(dist.Bernoulli, (64,), given=mlp(4, 50)), "z1"),
        Hierarchy(
            z1=Conditional(dist.Normal, (4,), given=mlp(64, 50)), z2=Conditional(dist.Normal, (2,), given=mlp(4, 20))
        ),
    ),
    "sphere": lambda: VAE(
        Conditional(SphericalUniform, (3,)),
        Conditional(dist.Bernoulli, (64,), given=mlp(3, 50)),
        Conditional(VonMisesFisher, (3,), given=mlp(64, 50)),
    ),
    "labels": lambda: VAE(
        _normal(4), Conditional(dist.Bernoulli, (64,), given=mlp(4 + 3, 50)), mlp(64 + 3, 50), context_features=3
    ),
}


@pytest.fixture
def x():
    return (torch.rand(300, 64, generator=torch.Generator().manual_seed(0)) < 0.3).float()


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_trains_and_evaluates(name, model, x):
    torch.manual_seed(0)
    context = torch.eye(3).repeat(100, 1) if model == "labels" else None
    held_out, x = Batch(x, context).select(slice(50)), Batch(x, context)
    if name == "m2" and context is not None:
        x.context[100:] = torch.nan
    vae, algorithm = MODELS[model](), ALGORITHMS[name]()
    vae.size = x.size
    try:
        algorithm.check(vae)
    except InputError as refusal:
        pytest.skip(str(refusal))
    vae, algorithm = vae.cuda(), ALGORITHMS[name]()
    before = {key: parameter.clone() for key, parameter in vae.named_parameters()}
    state = torch.cuda.get_rng_state()
    history = fit(
        vae, x, algorithm, Training(optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), epochs=5), validation=held_out
    )
    assert torch.equal(torch.cuda.get_rng_state(), state)
    if algorithm.has_bound and name != "mmd":  # which does not follow the bound that it reports
        assert history.bound[-1] > history.bound[0]
    moved = {key for phase in algorithm.phases for key in algorithm.moved(vae, phase)}
    for key, parameter in vae.named_parameters():
        assert parameter.is_cuda
        assert torch.equal(before[key], parameter) == (key not in moved)
    held_out = held_out.to(vae.device, vae.dtype)
    marginal, bound = log_marginal(vae, held_out, 100), elbo(vae, held_out, 100)
    assert marginal.value >= bound.value
    assert vae.generate(3, None if context is None else context[:3].cuda()).is_cuda


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation_agrees_in_kind_with_the_cpu(name):
    """Draws differ between devices; each number is finite, of the same shape, and repeats."""
    vae = vae_with_modes()
    expected = numbers(EVALUATIONS[name](vae, X.float(), 0))
    vae = vae.cuda()
    first, second = (numbers(EVALUATIONS[name](vae, X.float().cuda(), 0)).cpu() for _ in range(2))
    assert bool(first.isfinite().all())
    assert first.shape == expected.shape
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_agrees_with_the_cpu(x):
    torch.manual_seed(0)
    vae = MODELS["mlp"]()
    z = torch.randn(7, 300, 4)
    expected = vae.log_likelihood(z, x)
    torch.testing.assert_close(vae.cuda().log_likelihood(z.cuda(), x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-2)


def test_pyros_svi(x):
    torch.manual_seed(0)
    vae = MODELS["mlp"]().cuda()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x.cuda()) for _ in range(50)]
    assert losses[-1] < losses[0]


def test_compare():
    quick = {"latent": 2, "training": {"epochs": 1}, "seeds": [0], "device": "cuda", "inference": ["aevb", "mcem"]}
    quick["evaluation"] = {"num_samples": 50, "temperatures": 5, "posterior_checks": 10}
    result = compare(Experiment.parse(quick))
    assert result.environment["device"].startswith("cuda (")
    assert len(result.runs) == 2
    assert set(result.checks.gradients) == {"aevb", "mcem"}


def test_a_trained_model_on_the_device_answers_as_on_the_cpu():
    experiment = Experiment.parse({"data": {"name": "digits", "missing": "mask"}, "latent": 2})
    data = experiment.load_data()
    trained = TrainedVAE(experiment.build(data), data.units, ALGORITHMS["aevb"]())
    grey = data.to_own_units(data.test[:5])
    grey[:, 3] = torch.nan
    calls = (trained.encode, trained.impute, trained.reconstruct)
    expected = [call(grey) for call in calls]
    trained.vae.cuda()
    for call, table in zip(calls, expected, strict=True):
        pd.testing.assert_frame_equal(call(grey), table, rtol=1e-3, atol=1e-3)
    assert trained.score(grey, 20).log_p.notna().all()
    assert trained.sample(3).shape == (3, 64)


@pytest.mark.parametrize("name", ["aevb", "iwae", "wake-sleep"])
@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_compiled_training_agrees_with_uncompiled(name: str, model: str, x: torch.Tensor) -> None:
    trained = []
    for compiled in (False, True):
        torch.manual_seed(0)
        vae = MODELS[model]().cuda()
        with Lifted():
            history = fit(
                *(vae, x, ALGORITHMS[name]()),
                Training(optimizer=lambda p: torch.optim.Adam(p, 1e-3), steps=20, batch_size=32, compile=compiled),
            )
        assert history.execution.startswith("compiled" if compiled else "uncompiled")
        trained.append((history.bound, [p.detach() for p in vae.parameters()]))
    (bound, parameters), (bound_compiled, parameters_compiled) = trained
    torch.testing.assert_close(torch.tensor(bound), torch.tensor(bound_compiled), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(parameters, parameters_compiled, rtol=1e-3, atol=1e-4)


def test_compiled_steps_do_not_wait_for_the_device(x: torch.Tensor) -> None:
    vae = MODELS["mlp"]().cuda()
    x = x[: len(x) // 32 * 32]  # a short last minibatch is a kind of its own, at whose begin the queue is settled
    training = Training(lambda p: torch.optim.Adam(p, 1e-3), steps=1000, batch_size=32, compile=True)
    loop = prepared([vae], x, [ALGORITHMS["aevb"]()], training, [0])
    loop.open()
    with pyro.validation_enabled(False):
        loop.advance(loop.source.steps)
        loop.settle()
        (kind,) = loop.steppers[0].programs.kinds.values()
        kind.program.stretch = 1000
        try:
            torch.cuda.set_sync_debug_mode("error")
            loop.advance(2 * loop.source.steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        loop.settle()
    assert torch.tensor(loop.members[0].records.bounds).isfinite().all()
