r"""Posterior probabilities of the discrete sites that a program sums out."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.batch import DataLike
from pyro_vae.errors import InputError, near_match
from pyro_vae.evaluation.data import evaluated, of_a_vae, rows_at_once
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Largest number of latents (draws x data) at once.
_ROWS = 20_000


@of_a_vae
@torch.no_grad()
def site_probabilities(
    vae: LatentVariableModel, data: DataLike, site: str, num_samples: int = 100, *, seed: int = 0
) -> Tensor:
    r"""Returns p(y|x) of a discrete site y that is summed out.

    .. math:: p(y|x) \approx \sum_s \bar w_s \, p(y | x, z_s), \qquad z_s \sim q(z|x), \quad
        \bar w_s \propto \frac{\sum_y p(x, y, z_s)}{q(z_s|x)}

    p(y | x, z) is exact. The estimate over z converges with S as importance sampling of log p(x) does; see the
    ``pareto_k`` of `log_marginal`.

    Arguments:
        vae: A `Program` with sites marked by ``infer={"enumerate": "parallel"}``.
        data: Data of the program's form.
        site: Name of such a site.
        num_samples: S, the number of draws of z for each datum.
        seed: Seed of the draws; the global random state does not change.

    Returns:
        Shape ``(N, C)`` for a site of C values, in the order of the distribution's ``enumerate_support``;
        ``(N, n, C)`` for one in inner plates of n cells in all.

    Raises:
        InputError: For a name that is no enumerated site.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import Program
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         y = pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        ...         z = pyro.sample("z", dist.Normal(4 * y, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> x = torch.tensor([0.0, 2.0, 4.0])
        >>> site_probabilities(Program(model, guide, x), x, "y").argmax(-1)[[0, 2]]
        tensor([0, 1])
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise InputError(f"site_probabilities: `num_samples` is a positive integer, got `{num_samples!r}`.")
    names = list(vae.enumerated_sites)
    if site not in names:
        hint = near_match(site, names) if names else "the model marks no site by infer={'enumerate': 'parallel'}."
        raise InputError(f"site_probabilities: `{site}` is no enumerated site; {hint}")
    batch = evaluated("site_probabilities", vae, data, weighted=True)
    size = max(1, rows_at_once(vae, _ROWS) // num_samples)
    found = []
    with evaluating(vae), isolated(seed, "evaluation"):
        for start in range(0, batch.size, size):
            part = batch.select(slice(start, start + size)).to(vae.device, vae.dtype)
            q = vae.posterior_given(part)
            z = q.sample((num_samples,))
            weights = (vae.log_joint_of(z, part) - q.log_prob(z)).softmax(0)
            given = vae.log_probabilities_of(site, z, part).exp()
            found.append((weights.reshape(*weights.shape, 1, 1) * given).sum(0))
    probabilities = torch.cat(found)
    return probabilities[:, 0] if probabilities.shape[1] == 1 else probabilities
