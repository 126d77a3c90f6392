"""Many independent replicates of an algorithm's gradient from one backward pass, on the linear-Gaussian oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from linear_gaussian import Encoder, LinearGaussian
from scipy.stats import norm
from torch import Tensor, nn
from z_test import FAILURE_RATE

from pyro_vae import VAE, Batch, Conditional, Fixed
from pyro_vae.inference import Inference, Loss

# Draws of z in one call, which bounds the memory.
ROWS = 2**17


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch within the block, and switches Pyro's validation off, which would double the time."""
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        yield


def all_losses(inference: Inference, vae: VAE, data: Tensor | Batch, seed: int = 0) -> list[Loss]:
    """Returns the loss of every phase, with seeded draws."""
    with seeded(seed):
        return list(inference.losses(vae, data))


class Remembering(dist.TransformedDistribution):
    """Tells the density of its own draws by what they were pushed from, as flows with a cache do."""

    known: tuple[Tensor, Tensor] | None = None

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        u = self.base_dist.rsample(sample_shape)
        self.known = (u.exp(), self.base_dist.log_prob(u) - u.sum(-1))
        return self.known[0]

    def log_prob(self, value: Tensor) -> Tensor:
        if self.known is not None and value is self.known[0]:
            return self.known[1]
        return super().log_prob(value)


class Linear(nn.Module):
    r"""N(Ax + a, diag(s^2)), with parameters of their own for each of n equal shares of the rows of x.

    Where ``pushed``, x is what `ExpTransform` makes of such rows (for a likelihood), or the Normal is pushed
    through it (for a posterior).
    """

    def __init__(self, weight: Tensor, bias: Tensor, scale: Tensor, n: int, pushed: str = "") -> None:
        super().__init__()
        parameters = (
            t.detach().repeat(n, *(1 for _ in t.shape)) for t in (weight, bias, scale.expand(bias.shape).log())
        )
        self.weight, self.bias, self.log_scale = (nn.Parameter(t) for t in parameters)
        self.pushed = pushed

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        n = len(self.bias) if given.shape[-2] % len(self.bias) == 0 else 1  # a VAE's own probes have two rows
        x = (given.clamp_min(1e-99).log() if self.pushed == "input" else given).unflatten(-2, (n, -1))
        loc = (x @ self.weight[:n].mT + self.bias[:n].unsqueeze(-2)).flatten(-3, -2)
        scale = self.log_scale[:n].exp().repeat_interleave(x.shape[-2], 0).expand(loc.shape)
        if self.pushed == "output":
            return Remembering(dist.Normal(loc, scale).to_event(1), [dist.transforms.ExpTransform(cache_size=1)])
        return dist.Normal(loc, scale).to_event(1)


def replicated(model: LinearGaussian, encoder: Encoder, n: int, pushed: bool = False) -> VAE:
    """Returns the oracle's VAE n times in one: a batch is n batches, each with theta and phi of its own.

    Where ``pushed``, its latents are exp(z): another parametrisation of the same model.
    """
    prior = Conditional(dist.LogNormal if pushed else dist.Normal, model.W.shape[1:], loc=Fixed(0.0), scale=Fixed(1.0))
    into, out = ("input", "output") if pushed else ("", "")
    likelihood = Linear(model.W, model.b, model.s, n, into)
    return VAE(prior.double(), likelihood, Linear(encoder.V, encoder.c, encoder.t, n, out))


class Gradients(NamedTuple):
    """Of theta (W, b, log s) and phi (V, c, log t): shape ``(P,)`` each, or ``(n, P)`` for n replicates."""

    theta: Tensor
    phi: Tensor

    @property
    def both(self) -> Tensor:
        return torch.cat(self, -1)


def gradients(
    inference: Inference,
    model: LinearGaussian,
    encoder: Encoder,
    x: Tensor,
    n: int = 4000,
    seed: int = 0,
    pushed: bool = False,
) -> Gradients:
    """Returns independent replicates of minus the gradient of a batch x, each phase's for what it moves.

    With the same ``seed``, algorithms of one number of particles share their noise.
    """
    particles = getattr(inference, "num_particles", 1) * getattr(inference, "num_outer", 1)
    chunk = min(n, ROWS // (len(x) * particles))
    parts = []
    for i in range(-(-n // chunk)):
        vae = replicated(model, encoder, chunk, pushed)
        total = {name: torch.zeros_like(p) for name, p in vae.named_parameters()}
        with seeded(seed + 1000 * i):
            for phase, loss in zip(inference.phases, inference.losses(vae, x.repeat(chunk, 1)), strict=True):
                moved = {name: p for name, p in inference.moved(vae, phase).items() if name in total}
                if not moved:
                    continue
                slopes = torch.autograd.grad(
                    -chunk * loss.value, list(moved.values()), allow_unused=True, materialize_grads=True
                )
                for name, slope in zip(moved, slopes, strict=True):
                    total[name] += slope
        groups = (vae.theta, vae.phi)
        parts.append([torch.cat([total[name].flatten(1) for name in group], 1) for group in groups])
    theta, phi = (torch.cat(rows)[:n] for rows in zip(*parts, strict=True))
    return Gradients(theta, phi)


def exact_gradients(
    objective: Callable[[LinearGaussian, Encoder], Tensor], model: LinearGaussian, encoder: Encoder
) -> Gradients:
    """Returns the gradient of an exact objective."""
    theta, phi = (model.W, model.b, model.s.expand(model.b.shape).log()), (encoder.V, encoder.c, encoder.t.log())
    (w, b, log_s), (v, c, log_t) = ([t.detach().clone().requires_grad_() for t in group] for group in (theta, phi))
    value = objective(LinearGaussian(w, b, log_s.exp()), Encoder(v, c, log_t.exp()))
    slopes = torch.autograd.grad(value, [w, b, log_s, v, c, log_t], allow_unused=True, materialize_grads=True)
    flat = [slope.flatten() for slope in slopes]
    return Gradients(torch.cat(flat[:3]), torch.cat(flat[3:]))


def variance(samples: Tensor) -> float:
    """Returns the trace of the covariance of replicates, shape ``(n, P)``."""
    return float(samples.var(0).sum())


def signal_to_noise(samples: Tensor) -> float:
    """Returns the norm of the expectation over the root of the trace of the covariance, without bias in its square."""
    signal = samples.mean(0).square().sum() - samples.var(0).sum() / len(samples)
    return float(signal.clamp_min(0) / samples.var(0).sum()) ** 0.5


def bounds(inference: Inference, vae: VAE, x: Tensor, n: int = 100, copies: int = 100) -> Tensor:
    """Returns n independent values of the bound, each the mean over as many copies of x, shape ``(n,)``."""
    with torch.no_grad() if inference.name != "piwae" else torch.enable_grad():
        losses = [all_losses(inference, vae, x.repeat(copies, *(1 for _ in x.shape[1:])), seed)[0] for seed in range(n)]
    return torch.stack([loss.value if loss.bound is None else loss.bound for loss in losses])


def assert_below(samples: Tensor, other: Tensor | float) -> None:
    """Asserts that the expectation of samples, shape ``(n,)``, is not above another, given exactly or by samples."""
    error, above = samples.var() / len(samples), samples.mean()
    if isinstance(other, Tensor) and other.dim():
        error, other = error + other.var() / len(other), other.mean()
    z = float((above - other) / error.sqrt())
    assert z < norm.isf(FAILURE_RATE), f"z = {z:.2f}"


def assert_clearly_below(samples: Tensor, other: Tensor) -> None:
    """Asserts that the expectation of samples, shape ``(n,)``, is below another's by more than chance."""
    z = float((other.mean() - samples.mean()) / (samples.var() / len(samples) + other.var() / len(other)).sqrt())
    assert z > norm.isf(FAILURE_RATE), f"z = {z:.2f}"
