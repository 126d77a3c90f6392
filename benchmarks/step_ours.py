r"""Contenders of `benchmarks.step_time` in this package."""

from __future__ import annotations

import warnings
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from benchmarks.step_contenders import AtNoise, Contender
from benchmarks.step_problem import RATE, Array, Problem, copy_weights
from pyro_vae import VAE, Batch, Conditional, Fixed, Training, conv_decoder, conv_encoder, mlp
from pyro_vae.inference import AEVB, IWAE, Inference
from pyro_vae.runtime.interrupts import deferrable
from pyro_vae.training.fit import prepared
from pyro_vae.training.stacked_minibatches import Minibatch


def make_vae(problem: Problem) -> VAE:
    """Returns the VAE of a problem with its weights."""
    size = problem.size
    prior = Conditional(dist.Normal, (size.latent,), loc=Fixed(0.0), scale=Fixed(1.0))
    if size.channels:
        encoder: nn.Module = conv_encoder((1, 28, 28), *size.channels)
        decoder = conv_decoder(size.latent, (1, 28, 28), *reversed(size.channels))
        likelihood = Conditional(dist.Bernoulli, (size.data,), given=decoder, head=None)
    else:
        encoder = mlp(size.data, *size.hidden)
        likelihood = Conditional(dist.Bernoulli, (size.data,), given=mlp(size.latent, *reversed(size.hidden)))
    vae = VAE(prior, likelihood, Conditional(dist.Normal, (size.latent,), given=encoder))
    copy_weights(parameters_of(vae), problem.weights())
    return vae.to(problem.device)


def parameters_of(vae: VAE) -> list[nn.Parameter]:
    return [parameter for part in (vae.posterior, vae.likelihood) for parameter in part.parameters()]


def algorithm(problem: Problem) -> Inference:
    return AEVB() if problem.size.particles == 1 else IWAE(problem.size.particles)


class Ours(Contender):
    """`pyro_vae.fit` with ``compile=True``, `Trace_ELBO` on a model and a guide: the very loop that `fit` runs."""

    compile = True

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.vaes = [make_vae(problem) for _ in range(self.count)]
        training = Training(self.adam, steps=10**9, batch_size=problem.batch, compile=self.compile)
        algorithms = [algorithm(problem) for _ in self.vaes]
        self.loop = prepared(self.vaes, self.data, algorithms, training, range(self.count))
        self.loop.open()

    @property
    def count(self) -> int:
        """Number of VAEs that are trained together."""
        return 1

    @property
    def vae(self) -> VAE:
        """The first VAE."""
        return self.vaes[0]

    @staticmethod
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=RATE)

    def steps(self, n: int) -> None:
        with warnings.catch_warnings(), deferrable():  # as `fit` does
            warnings.filterwarnings("ignore", message="Encountered NaN")
            self.loop.advance(self.loop.step + n)
            self.loop.settle()
            self.loop.check_parameters()
        if any(member.stopped for member in self.loop.members):
            raise RuntimeError(" ".join(member.remark for member in self.loop.members))
        self.wait()
        self.taken += n

    def loss(self, x: Array, noise: Array) -> tuple[float, Array]:
        """Returns loss and noise; a copy takes the compiled step, since this step changes the weights."""
        data, epsilon = self.tensors(x, noise)
        if not self.compile:
            with AtNoise(epsilon):
                return float(self.loop.members[0].inference.loss(self.vae, Batch(data)).value.detach()), noise
        twin = type(self)(self.problem)  # whose optimizer and weights are moved
        copy_weights(parameters_of(twin.vae), self.weights())
        programs, minibatch = twin.loop.steppers[0].programs, Minibatch(Batch(data), [None], True)
        if programs is None:
            raise RuntimeError("the step has not been compiled")
        plan: Any = programs.program_for(programs.kind_of(minibatch), minibatch, 1)
        plan.steps[0][1].captured.noise = lambda: [epsilon]
        bound = plan.take(Batch(data), {})
        if bound is None:
            raise RuntimeError("the step has no bound")
        return -float(bound), noise

    def parameters(self) -> list[nn.Parameter]:
        return parameters_of(self.vae)


class OursEager(Ours):
    """`pyro_vae.fit` with ``compile=False``."""

    compile = False


class Replicates(Ours):
    """`pyro_vae.fit` of R VAEs with ``compile=True``."""

    @property
    def count(self) -> int:
        return self.problem.replicates

    def close(self) -> None:
        """Ends the run."""
        self.loop.close()
