r"""Contenders of `benchmarks.step_time` in Pyro."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO
from torch import Tensor

from benchmarks.step_contenders import AtNoise, Stepwise
from benchmarks.step_problem import RATE, Array, Problem

CHECK_SEED = 3


class PyroSVI(Stepwise):
    """A model and a guide as in Pyro's tutorial, with `pyro.infer.SVI` and `pyro.optim.Adam`, without validation."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        pyro.clear_param_store()
        pyro.enable_validation(False)
        torch.distributions.Distribution.set_default_validate_args(False)
        self.elbo = self.make_elbo()
        self.svi = SVI(self.model, self.guide, pyro.optim.Adam({"lr": RATE}), self.elbo)

    def make_elbo(self) -> Any:
        k = self.problem.size.particles
        if k == 1:
            return Trace_ELBO(max_plate_nesting=1)
        return RenyiELBO(alpha=0, num_particles=k, vectorize_particles=True, max_plate_nesting=1)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.networks.decoder)
        zero = x.new_zeros(self.problem.size.latent)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.networks.decode(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.networks.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.networks.encode(x)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def loss(self, x: Array, noise: Array) -> tuple[float, Array]:
        data, epsilon = self.tensors(x, noise)
        with AtNoise(epsilon):
            return self.svi.evaluate_loss(data) / len(x), noise

    def step(self, x: Tensor) -> None:
        self.svi.step(x)


class PyroJit(PyroSVI):
    """`PyroSVI` with `JitTrace_ELBO`, which traces to TorchScript."""

    def make_elbo(self) -> Any:
        warnings.simplefilter("ignore")  # warnings of the tracer
        return JitTrace_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)

    def loss(self, x: Array, noise: Array) -> tuple[float, Array]:
        (data,) = self.tensors(x)
        for _ in range(2):  # the first call traces
            torch.manual_seed(CHECK_SEED)
            value = self.elbo.loss_and_grads(self.svi.model, self.svi.guide, data)
        self.networks.zero_grad()
        torch.manual_seed(CHECK_SEED)
        zeros = torch.zeros(self.problem.noise_shape, device=self.device)
        return value / len(x), torch.normal(zeros, zeros + 1).cpu().numpy()
