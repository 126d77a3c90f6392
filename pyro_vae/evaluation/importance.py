r"""Importance-sampled log p(x) and the ELBO, with measures of their reliability."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.batch import Batch, DataLike
from pyro_vae.engine.compilation.cost import Mode
from pyro_vae.engine.compilation.routine import enabled, repeated, routine
from pyro_vae.errors import InputError
from pyro_vae.evaluation.data import evaluated, of_a_vae
from pyro_vae.evaluation.estimate import Estimate, LogMean
from pyro_vae.evaluation.pareto import pareto_k
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.progress import tracked
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Number of rows of x (samples x data) whose z are drawn at once: on a CPU few, elsewhere many, so that the kernels'
# launch times do not matter. The draws of a seed depend on it.
_ROWS = {"cpu": 2000}
_ROWS_ELSEWHERE = 20_000
# Number of bytes of the x of the rows that are decoded at once; no draw depends on it. On a CPU few, so that the
# decoder's activations fit the cache; elsewhere as many as leave room in the device's memory.
_BYTES = {"cpu": 2**23}
_BYTES_ELSEWHERE = 2**30
# Least number of samples of a datum that are drawn at once, if that many are wanted.
_BLOCK = 100

# The largest block whose release raises glibc's thresholds, minus room for its header.
_LARGEST_BLOCK = 2**25 - 2**16


@of_a_vae
@torch.no_grad()
def log_marginal(
    vae: LatentVariableModel,
    data: DataLike,
    num_samples: int = 5000,
    *,
    seed: int = 0,
    compile: Mode = "auto",
    progress: bool = False,
) -> Estimate:
    r"""Returns the importance-sampling estimate of log p(x).

    .. math:: \log \hat p(x) = \log \frac{1}{S} \sum_s \frac{p(x, z_s)}{q(z_s|x)}, \qquad z_s \sim q(z|x)

    In expectation this is a lower bound, which rises with S. If a datum's Pareto k-hat is above 0.7, the tail of its
    weights is so heavy that neither the estimate from S samples nor its error is reliable.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes. Memory is bounded for any N.
        num_samples: S, the number of samples for each datum.
        seed: Seed of the draws; the global random state does not change.
        compile: Whether blocks of samples run as a compiled program. ``"auto"``: if that saves time, judged by the
            first blocks. True: always, except for smaller blocks at the end; a model that cannot be compiled is an
            error. With the same noise, results are the same up to rounding; Bernoulli and categorical draws have
            another stream.
        progress: Whether to show a progress bar.

    Returns:
        The estimate, in nats per datum. Its diagnostics of each datum, shape ``(N,)``: ``pareto_k``;
        ``effective_sample_size`` of the S weights; ``bias``, their relative variance / 2S, by which the estimate is
        too low in expectation (leading term).

    Raises:
        InputError: If ``num_samples`` is below 2 or the data do not fit the VAE.
        CaptureError, CompilationError: With ``compile=True``, if the operations of the model depend on values, or
            this machine cannot compile.

    Reference: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2015, equation 8; Vehtari,
    Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", 2024.
    """
    if not isinstance(num_samples, int) or num_samples < 2:
        raise InputError(f"log_marginal: `num_samples` is an integer of at least 2, got `{num_samples!r}`.")
    batch = evaluated("log_marginal", vae, data, weighted=True)
    means, tails = [], []
    for log_w in _log_weights(vae, batch, num_samples, seed, compile, "log p(x)" if progress else None):
        means.append(LogMean.of(log_w))
        tails.append(pareto_k(log_w))
    mean = LogMean(*(torch.cat(column) for column in zip(*means, strict=True)))
    return Estimate.of(
        mean.value,
        mean.error,
        batch.weight,
        method="importance sampling",
        num_samples=num_samples,
        seed=seed,
        pareto_k=torch.cat(tails),
        effective_sample_size=mean.effective_sample_size.cpu(),
        bias=mean.bias.cpu(),
    )


@of_a_vae
@torch.no_grad()
def elbo(
    vae: LatentVariableModel,
    data: DataLike,
    num_samples: int = 10,
    *,
    seed: int = 0,
    compile: Mode = "auto",
    progress: bool = False,
) -> Estimate:
    r"""Returns the Monte Carlo estimate of the ELBO, :math:`E_q[\log p(x, z) - \log q(z|x)]`.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes.
        num_samples: Number of draws of z for each datum; with one, the standard error is nan.
        seed: Seed of the draws; the global random state does not change.
        compile: See `log_marginal`.
        progress: Whether to show a progress bar.

    Returns:
        The estimate, in nats per datum.

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, equation 6.
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise InputError(f"elbo: `num_samples` is a positive integer, got `{num_samples!r}`.")
    batch = evaluated("elbo", vae, data, weighted=True)
    values, errors = [], []
    for log_w in _log_weights(vae, batch, num_samples, seed, compile, "ELBO" if progress else None):
        values.append(log_w.mean(0))
        unknown = torch.full_like(log_w[0], math.nan)  # a single draw gives no variance
        errors.append(log_w.std(0) / math.sqrt(num_samples) if num_samples > 1 else unknown)
    return Estimate.of(torch.cat(values), torch.cat(errors), batch.weight, num_samples=num_samples, seed=seed)


def _log_weights(
    vae: LatentVariableModel, batch: Batch, num_samples: int, seed: int, compile: Mode, progress: str | None
) -> Iterator[Tensor]:
    """Yields log weights for each chunk of the data, shape ``(S, data of the chunk)``, in float64."""
    rows = _ROWS.get(vae.device.type, _ROWS_ELSEWHERE)
    size = max(1, min(batch.size, rows // min(num_samples, _BLOCK)))
    at_once = min(num_samples, max(1, rows // size))
    decoded = _samples_decoded(vae, batch.select(slice(0, size)))
    whole = batch.size // size * (num_samples // at_once) * -(-at_once // decoded)  # number of blocks of full size
    _keep_released_memory()
    with evaluating(vae), isolated(seed, "evaluation"), enabled(compile), repeated(whole):
        for start in tracked(range(0, batch.size, size), progress):
            part = batch.select(slice(start, start + size)).to(vae.device, vae.dtype)
            most = at_once if part.size == size else max(1, rows // part.size)
            yield torch.cat(list(_blocks(vae, part, num_samples, most, compiled=part.size == size)))


def _blocks(vae: LatentVariableModel, batch: Batch, num_samples: int, at_once: int, compiled: bool) -> Iterator[Tensor]:
    """Yields log weights in blocks of samples, as `VAE.log_weights_of`, with one pass through the encoder for all."""
    decoded = _samples_decoded(vae, batch)
    q, p, validation = vae.posterior_given(batch), vae.prior_given(batch), pyro.distributions.is_validation_enabled()
    for done in range(0, num_samples, at_once):
        n = min(at_once, num_samples - done)
        with pyro.validation_enabled(validation and done == 0):  # one check is enough: the data do not change
            uncompiled = partial(_weighed, vae, batch, q, p, n, decoded)
            whole = compiled and n == at_once <= decoded
            log_w = (
                routine(_log_weights_of_block, vae)(tuple(batch), n, otherwise=uncompiled) if whole else uncompiled()
            )
        yield log_w.double()


def _log_weights_of_block(vae: LatentVariableModel, fields: tuple[Tensor, ...], n: int) -> Tensor:
    """Returns the log weights of n samples of each datum, as a function of tensors and the VAE only."""
    batch = Batch(*fields)
    return _weighed(vae, batch, vae.posterior_given(batch), vae.prior_given(batch), n)


def _weighed(
    vae: LatentVariableModel,
    batch: Batch,
    q: TorchDistribution,
    p: TorchDistribution,
    n: int,
    decoded: int | None = None,
) -> Tensor:
    """Returns the log weights of n samples of each datum, of which ``decoded`` pass the decoder at once (None: all)."""
    z = q.rsample((n,)) if q.has_rsample else q.sample((n,))
    if decoded is None or n <= decoded:
        return vae.log_joint_of(z, batch, p) - q.log_prob(z)
    piece = routine(_log_likelihood_of_piece, vae)
    likelihood = torch.cat([piece(tuple(batch), each) for each in z.split(decoded)])
    log_w: Tensor = p.log_prob(z) + likelihood - q.log_prob(z)
    return log_w


def _log_likelihood_of_piece(vae: LatentVariableModel, fields: tuple[Tensor, ...], z: Tensor) -> Tensor:
    """Returns log p(x|z) of some samples of each datum, as a function of tensors and the VAE only."""
    return vae.log_likelihood_of(z, Batch(*fields))


def _samples_decoded(vae: LatentVariableModel, batch: Batch) -> int:
    """Returns how many samples of each datum of a batch pass the decoder at once."""
    size_of_all = max(1, sum(tensor.numel() for tensor in pytree.tree_leaves(batch.x)) * vae.dtype.itemsize)
    return max(1, _BYTES.get(vae.device.type, _BYTES_ELSEWHERE) // size_of_all)


def _keep_released_memory() -> None:
    """Makes glibc keep up to 64 MiB of released memory for the next block of samples.

    By default, glibc returns released memory beyond twice the largest block released so far to the kernel, and gets
    it back page by page, which takes up to half of the time of an evaluation. Other allocators are not affected.
    """
    torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)
