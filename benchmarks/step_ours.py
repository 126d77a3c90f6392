r"""Contenders of `benchmarks.step_time` in this package."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from benchmarks.step_contenders import AtNoise, Contender
from benchmarks.step_problem import RATE, Array, Problem, copy_weights
from pyro_vae import VAE, Batch, Conditional, Fixed, conv_decoder, conv_encoder, mlp
from pyro_vae.inference import AEVB, IWAE, Inference
from pyro_vae.runtime.progress import steps_bar
from pyro_vae.training.loop import Loop
from pyro_vae.training.minibatches import minibatches
from pyro_vae.training.stepper import Stepper
from pyro_vae.training.validation import Watch


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
    """`pyro_vae.fit(compile=True)` with `Trace_ELBO` on a model and a guide: the loop of `fit` itself."""

    compile = True

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.vae, self.inference = make_vae(problem), algorithm(problem).to(self.device)
        self.source = minibatches(self.vae, self.data, problem.batch, seed=0)
        self.run = Stepper(self.vae, self.inference, self.adam, None, None, True)
        self.watch = Watch(self.vae, self.inference, None, self.source.steps, None, "last", True)
        if self.compile:
            with steps_bar(False, 1) as bar:
                self.run.compile_steps(True, 10**9, bar.busy)

    @staticmethod
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=RATE)

    def steps(self, n: int) -> None:
        with warnings.catch_warnings(), steps_bar(False, n) as bar:
            warnings.filterwarnings("ignore", message="Encountered NaN")
            Loop(self.run, self.watch, self.source, self.run.step + n, bar.report).take()
        self.wait()
        self.taken += n

    def loss(self, x: Array, noise: Array) -> tuple[float, Array]:
        """Returns loss and noise; a copy takes the compiled step, since this step changes the weights."""
        data, epsilon = self.tensors(x, noise)
        if not self.compile:
            with AtNoise(epsilon):
                return float(self.inference.loss(self.vae, Batch(data)).value.detach()), noise
        twin = type(self)(self.problem)  # the step changes its optimizer and weights
        copy_weights(parameters_of(twin.vae), self.weights())
        plan = twin.run.compiled.plan_for(Batch(data), 1) if twin.run.compiled else None
        step = None if plan is None else plan.steps[0][1]
        if plan is None or step is None:
            raise RuntimeError("the step has not been compiled")
        step.captured.noise = lambda: [epsilon]  # type: ignore[method-assign]
        bound = plan.take(Batch(data), {})
        if bound is None:
            raise RuntimeError("the step has no bound")
        return -float(bound), noise

    def parameters(self) -> list[nn.Parameter]:
        return parameters_of(self.vae)


class OursEager(Ours):
    """`pyro_vae.fit(compile=False)`."""

    compile = False


class Replicates(Contender):
    """`fit_replicates(compile=True)`, an endless run that pauses between turns."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.vaes = [make_vae(problem) for _ in range(problem.replicates)]
        self.until, self.done, self.go = 0, threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.closing, self.thread = False, threading.Thread(target=self.train, daemon=True)
        self.thread.start()
        self.halted()

    def train(self) -> None:
        from pyro_vae.training.replicated_training import fit_replicates

        try:
            fit_replicates(
                self.vaes,
                self.data,
                algorithm(self.problem),
                optimizer=Ours.adam,
                steps=10**9,
                batch_size=self.problem.batch,
                schedule=self.gate,
                compile=True,
            )
        except BaseException as error:
            self.error = error
        self.done.release()

    def gate(self, step: int) -> float:
        """The schedule of the run, called before each step; it pauses the run between turns."""
        if step == self.until:
            self.wait()
            self.done.release()
            self.go.acquire()
        if self.closing:
            raise KeyboardInterrupt  # the run ends and cleans up
        return 1.0

    def close(self) -> None:
        """Ends the run."""
        self.closing = True
        self.go.release()
        self.thread.join()

    def halted(self) -> None:
        self.done.acquire()
        if self.error is not None:
            raise self.error

    def steps(self, n: int) -> None:
        if n:
            self.until += n
            self.go.release()
            self.halted()
        self.taken += n

    def parameters(self) -> list[nn.Parameter]:
        return parameters_of(self.vaes[0])
