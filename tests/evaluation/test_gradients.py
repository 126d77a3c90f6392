"""The noise of gradients, against gradients whose distribution is known."""

from __future__ import annotations

import copy

import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import Tensor

from pyro_vae import VAE, Batch
from pyro_vae.errors import InputError
from pyro_vae.evaluation import gradient_variance
from pyro_vae.inference import AEVB, MCEM, STL, DReG, Inference, Loss, WakeSleep

MODEL = LinearGaussian.random(5, 2)
X = MODEL.sample(8)


class Noisy(Inference):
    """Whose gradient is ``mean + scale * N(0, 1)`` in each parameter of phi, and ``mean`` in those of theta."""

    name = "noisy"

    def __init__(self, mean: float = 3.0, scale: float = 2.0) -> None:
        super().__init__()
        self.mean, self.scale = mean, scale

    def loss(self, vae: VAE, batch: Batch) -> Loss:
        def slope(p: Tensor, scale: float) -> Tensor:
            return ((self.mean + scale * torch.randn_like(p)) * p).sum()

        of_phi = sum(slope(p, self.scale) for p in vae.phi.values())
        return Loss(of_phi + sum(slope(p, 0.0) for p in vae.theta.values()))


def test_variance_and_signal_to_noise_are_those_of_the_gradient() -> None:
    vae = MODEL.vae(MODEL.exact_encoder(1.6))
    (noise,) = gradient_variance(vae, X, {"noisy": Noisy()}, 2000).values()
    p = sum(parameter.numel() for parameter in vae.phi.values())
    assert noise["phi"].num_parameters == p
    assert abs(noise["phi"].variance.mean - 4 * p) < 3 * noise["phi"].variance.half_width
    assert abs(noise["phi"].signal_to_noise.mean - 1.5) < 3 * noise["phi"].signal_to_noise.half_width
    assert noise["phi"].variance.half_width < 0.05 * 4 * p
    assert noise["theta"].variance.mean < 1e-12


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    vae = MODEL.vae(MODEL.exact_encoder(1.6))
    p = sum(parameter.numel() for parameter in vae.phi.values())
    hits = torch.tensor([0.0, 0.0])
    for seed in range(200):
        noise = gradient_variance(vae, X, {"noisy": Noisy()}, 40, seed=seed)["noisy"]["phi"]
        hits += torch.tensor([4.0 * p in noise.variance, 1.5 in noise.signal_to_noise])
    assert bool((hits > 165).all())  # of 200; fewer has a probability of 2e-9 at 95 % coverage


def test_a_gradient_of_mean_zero_has_no_signal() -> None:
    vae = MODEL.vae(MODEL.exact_encoder(1.6))
    noise = gradient_variance(vae, X, {"noisy": Noisy(mean=0.0)}, 2000)["noisy"]["phi"]
    assert noise.signal_to_noise.mean < 0.05


def test_at_the_exact_posterior_stl_and_dreg_have_no_phi_noise_and_aevb_has() -> None:
    vae = MODEL.vae(MODEL.exact_encoder())
    noise = gradient_variance(vae, X, {"aevb": AEVB(), "stl": STL(), "dreg": DReG()}, 50)
    assert noise["stl"]["phi"].variance.mean < 1e-20
    assert noise["dreg"]["phi"].variance.mean < 1e-20
    assert noise["aevb"]["phi"].variance.low > 0.1


def test_phases_are_taken_together_and_groups_that_do_not_move_are_left_out() -> None:
    vae = MODEL.vae(MODEL.exact_encoder())
    noise = gradient_variance(vae, X, {"wake-sleep": WakeSleep(), "mcem": MCEM(2, 2, updates=3)}, 5)
    assert set(noise["wake-sleep"]) == {"theta", "phi"}
    assert set(noise["mcem"]) == {"theta"}
    one = gradient_variance(vae, X, {"mcem": MCEM(2, 2, updates=1)}, 5)["mcem"]["theta"]
    assert noise["mcem"]["theta"].variance.mean == pytest.approx(one.variance.mean, rel=1e-9)  # not 9 times


def test_it_leaves_everything_as_it_was_and_repeats() -> None:
    vae, algorithm, state = MODEL.vae(MODEL.exact_encoder(1.6)), MCEM(1, 1), torch.get_rng_state()
    before = copy.deepcopy((vae.state_dict(), algorithm.state_dict()))
    first, second = (gradient_variance(vae, X, {"a": algorithm, "b": AEVB()}, 5) for _ in range(2))
    assert first == second
    torch.testing.assert_close((vae.state_dict(), algorithm.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("bad", [2, 2.5, "10"])
def test_too_few_draws_are_refused(bad: object) -> None:
    with pytest.raises(InputError, match="`num_draws` is an integer of at least 3"):
        gradient_variance(MODEL.vae(MODEL.exact_encoder()), X, {"aevb": AEVB()}, bad)
