r"""The exact oracle: the linear-Gaussian VAE, where everything has a closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from pyro_vae import VAE, Conditional, Fixed, Learned, mlp


@dataclass(frozen=True)
class Encoder:
    r"""q(z|x) = N(Vx + c, diag(t^2)), with V of shape ``(L, D)``, c and t of shape ``(L,)``."""

    V: Tensor
    c: Tensor
    t: Tensor

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean of q(z|x), shape ``(B, L)``, and its scale, shape ``(L,)``."""
        return x @ self.V.T + self.c, self.t


@dataclass(frozen=True)
class LinearGaussian:
    r"""p(z) = N(0, I), p(x|z) = N(Wz + b, diag(s^2)), with W of shape ``(D, L)``, b of ``(D,)``, s of ``()`` or that.

    In float64. Every quantity is differentiable, so that its exact gradient is autograd's.
    """

    W: Tensor
    b: Tensor
    s: Tensor

    @classmethod
    def random(cls, d: int, latent: int, *, diagonal: bool = True, seed: int = 101) -> LinearGaussian:
        """Returns random parameters; where ``diagonal``, those of a model whose exact posterior is diagonal."""
        generator = torch.Generator().manual_seed(seed)
        a, b, s = (torch.randn(n, generator=generator, dtype=torch.float64) for n in ((d, latent), (d,), (d,)))
        s = 0.6 * (0.3 * s).exp()
        if diagonal:  # s^-1 W has orthogonal columns
            a = s.unsqueeze(-1) * torch.linalg.qr(a).Q * torch.linspace(2.0, 1.0, latent, dtype=torch.float64)
        return cls(a, b, s)

    @classmethod
    def maximum_likelihood(cls, x: Tensor, latent: int, s: float | None = None) -> LinearGaussian:
        r"""Returns the maximum of log p(x) over W, b and one shared s (or at a fixed s): probabilistic PCA.

        Its exact posterior is diagonal, so that it is also the maximum of the exact ELBO over a linear encoder.

        Reference: Tipping and Bishop, "Probabilistic principal component analysis", 1999, equations 7 and 8.
        """
        b = x.mean(0)
        eigenvalues, u = torch.linalg.eigh((x - b).T @ (x - b) / len(x))
        variance = eigenvalues[: x.shape[1] - latent].mean() if s is None else torch.tensor(s**2, dtype=x.dtype)
        gains = (eigenvalues[-latent:] - variance).clamp_min(0).sqrt()
        return cls((u[:, -latent:] * gains).flip(-1), b, variance.sqrt())

    @classmethod
    def of(cls, vae: VAE) -> tuple[LinearGaussian, Encoder]:
        """Reads a linear-Gaussian VAE, as functions of its parameters."""
        p = vae.likelihood(torch.cat([torch.zeros(1, *vae.latent_shape), torch.eye(*vae.latent_shape)]).to(vae.dtype))
        q = vae.posterior(torch.cat([torch.zeros(1, *vae.event_shape), torch.eye(*vae.event_shape)]).to(vae.dtype))
        (b, c), (w, v) = (p.mean[0], q.mean[0]), ((p.mean[1:] - p.mean[0]).T, (q.mean[1:] - q.mean[0]).T)
        return cls(w, b, p.stddev[0]), Encoder(v, c, q.stddev[0])

    @property
    def precision(self) -> Tensor:
        """Precision matrix of p(z|x), shape ``(L, L)``: the same for all x."""
        scaled = self.W / self._s.unsqueeze(-1)
        return torch.eye(self.W.shape[1], dtype=self.W.dtype) + scaled.T @ scaled

    @property
    def _s(self) -> Tensor:
        return self.s.expand(self.b.shape)

    def marginal(self) -> MultivariateNormal:
        """Returns p(x)."""
        return MultivariateNormal(self.b, self.W @ self.W.T + self._s.square().diag())

    def log_marginal(self, x: Tensor) -> Tensor:
        """Returns log p(x) in nats, shape ``(B,)``."""
        return self.marginal().log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Returns p(z|x)."""
        covariance = torch.linalg.inv(self.precision)
        return MultivariateNormal((x - self.b) / self._s.square() @ self.W @ covariance, covariance)

    def elbo(self, x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Returns the ELBO of q(z|x) = N(loc, diag(scale^2)) in nats, shape ``(B,)``."""
        log_likelihood = Normal(loc @ self.W.T + self.b, self._s).log_prob(x).sum(-1)
        spread = (self.precision.diagonal() - 1) * scale.square()
        kl = (loc.square() + scale.square() - 1) / 2 - scale.log()
        return log_likelihood - (spread / 2 + kl).sum(-1)

    def dream_cross_entropy(self, encoder: Encoder) -> Tensor:
        r"""Returns :math:`-E_{p(z,x)} \log q(z|x) = E_{p(x)} [KL(p(z|x) || q(z|x)) + H(p(z|x))]` in nats, a scalar."""
        through = torch.eye(self.W.shape[1], dtype=self.W.dtype) - encoder.V @ self.W
        mean = encoder.V @ self.b + encoder.c  # of Vx + c - z, whose variance is
        variance = through.square().sum(-1) + (encoder.V * self._s).square().sum(-1)
        return ((mean.square() + variance) / (2 * encoder.t.square()) - Normal(0.0, encoder.t).log_prob(mean * 0)).sum()

    def exact_encoder(self, wider: float = 1.0) -> Encoder:
        """Returns p(z|x), which must be diagonal, with its scale multiplied by ``wider``."""
        covariance = torch.linalg.inv(self.precision)
        torch.testing.assert_close(covariance, covariance.diagonal().diag(), rtol=0, atol=1e-12)
        v = covariance @ (self.W / self._s.square().unsqueeze(-1)).T
        return Encoder(v, -v @ self.b, wider * covariance.diagonal().sqrt())

    def sample(self, n: int, seed: int = 202) -> Tensor:
        """Returns n draws of x, shape ``(n, D)``; no other stream of a test may have this seed."""
        generator = torch.Generator().manual_seed(seed)
        z, noise = (torch.randn(n, k, generator=generator, dtype=self.W.dtype) for k in self.W.T.shape)
        return z @ self.W.T + self.b + noise * self._s

    def vae(self, encoder: Encoder | None = None, *, fixed_scale: bool = False, **options: Any) -> VAE:
        """Returns the VAE that has these very parameters, in float64.

        Arguments:
            encoder: q(z|x), a `Conditional` that is linear in x; None: the exact posterior with its full covariance.
            fixed_scale: Whether s is `Fixed` rather than `Learned`.
            **options: Of `VAE`.
        """
        d, latent = self.W.shape
        prior = Conditional(dist.Normal, (latent,), loc=Fixed(0.0), scale=Fixed(1.0))
        scale = (Fixed if fixed_scale else Learned)(self.s)
        likelihood = Conditional(dist.Normal, (d,), given=mlp(latent), scale=scale)
        posterior: nn.Module = ExactPosterior(self)
        if encoder is not None:
            posterior = Conditional(dist.Normal, (latent,), given=mlp(d), scale=Learned(encoder.t))
            _set(posterior, encoder.V, encoder.c)
        return VAE(prior.double(), _set(likelihood, self.W, self.b), posterior, **options)


@torch.no_grad()
def _set(conditional: Conditional, weight: Tensor, bias: Tensor) -> Conditional:
    conditional.double()
    conditional.head.weight.copy_(weight)
    conditional.head.bias.copy_(bias)
    return conditional


class ExactPosterior(nn.Module):
    """p(z|x) with its full covariance, as a module of a user's own."""

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        origin = model.posterior(torch.zeros_like(model.b))
        self.V = nn.Parameter((model.posterior(torch.eye(len(model.b), dtype=model.W.dtype)).mean - origin.mean).T)
        self.c = nn.Parameter(origin.mean)
        self.scale_tril = nn.Parameter(origin.scale_tril)

    def forward(self, x: Tensor) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(x @ self.V.T + self.c, scale_tril=self.scale_tril)
