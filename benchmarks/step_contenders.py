r"""Contenders of `benchmarks.step_time`: hand-written PyTorch and pythae, and the base of all PyTorch contenders."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.step_problem import RATE, Array, Networks, Problem, matrix_products

TRIALS, TRIAL_SECONDS = 5, 0.1  # trials of each way to compile; the fastest way is used


class AtNoise(TorchDispatchMode):
    """A block in which a draw of standard normal noise returns the given noise."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function is torch.ops.aten.normal_.default:
            return arguments[0].copy_(self.noise)
        if function is torch.ops.aten.randn_like.default:
            return self.noise.clone()
        return function(*arguments, **(named or {}))


class Contender:
    """One way to take optimization steps; each contender has its own process.

    Arguments:
        problem: Problem to train, from `Problem.weights` on, with Adam.

    Attributes:
        estimator: Estimator of the ELBO: with ``"analytic"`` KL, or ``"sampled"``.
        taken: Number of steps taken so far.
        remark: Note for the user.
    """

    estimator = "sampled"
    remark = ""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.taken = problem, 0
        self.device = torch.device(problem.device)
        self.data = torch.from_numpy(problem.data()).to(self.device)

    def loss(self, x: Array, noise: Array) -> tuple[float, Array]:
        """Returns the loss, in nats per datum, at the current weights, and the noise that was used."""
        raise NotImplementedError

    def steps(self, n: int) -> None:
        """Takes steps as in an epoch, with the gathering of minibatches, and returns when they are done."""
        raise NotImplementedError

    def parameters(self) -> list[nn.Parameter]:
        raise NotImplementedError

    def weights(self) -> list[Array]:
        """Returns the current weights, in the order of `Problem.weights`."""
        return [parameter.detach().cpu().numpy() for parameter in self.parameters()]

    def tensors(self, *arrays: Array) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    def wait(self) -> None:
        """Waits until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def epochs(self) -> Iterator[Tensor]:
        """Yields minibatches without end: shuffled once in an epoch, gathered at each step."""
        for _ in count():
            for rows in torch.randperm(self.problem.rows, device=self.device).split(self.problem.batch):
                yield self.data[rows]


class Stepwise(Contender):
    """A contender with a function that takes one step."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.networks = Networks(problem.size).set(problem.weights()).to(self.device)
        self.minibatches = self.epochs()

    def step(self, x: Tensor) -> None:
        raise NotImplementedError

    def steps(self, n: int) -> None:
        for x in islice(self.minibatches, n):
            self.step(x)
        self.wait()
        self.taken += n

    def parameters(self) -> list[nn.Parameter]:
        return list(self.networks.parameters())


class Hand(Stepwise):
    """Eager PyTorch: networks, the KL in closed form, `torch.optim.Adam` with its defaults."""

    fused: bool | None = None

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        if problem.size.particles == 1:
            self.estimator = "analytic"
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=RATE, fused=self.fused)
        self.objective: Callable[[Tensor, Tensor], Tensor] = self.write_objective()

    def write_objective(self) -> Callable[[Tensor, Tensor], Tensor]:
        return self.elbo if self.problem.size.particles == 1 else self.importance_weighted

    def elbo(self, x: Tensor, noise: Tensor) -> Tensor:
        loc, log_scale = self.networks.encode(x)
        scale = log_scale.exp()
        logits = self.networks.decode(loc + scale * noise)
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = 0.5 * (loc * loc + scale * scale - 1 - 2 * log_scale).sum()
        return (reconstruction + kl) / x.shape[0]

    def importance_weighted(self, x: Tensor, noise: Tensor) -> Tensor:
        loc, log_scale = self.networks.encode(x)
        z = loc + log_scale.exp() * noise
        logits = self.networks.decode(z)
        x_of_all = x.expand_as(logits)
        log_likelihood = -F.binary_cross_entropy_with_logits(logits, x_of_all, reduction="none").sum(-1)
        log_ratio = (0.5 * (noise * noise - z * z) + log_scale).sum(-1)  # log p(z) - log q(z|x)
        log_weights = log_likelihood + log_ratio
        return math.log(noise.shape[0]) - log_weights.logsumexp(0).mean()

    def loss(self, x: Array, noise: Array) -> tuple[float, Array]:
        return float(self.objective(*self.tensors(x, noise)).detach()), noise

    def step(self, x: Tensor) -> None:
        loss = self.objective(x, torch.randn(self.problem.noise_shape, device=self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class HandFused(Hand):
    """`Hand` with Adam's fused implementation."""

    fused = True


class HandCompiled(Hand):
    """`Hand` with `torch.compile` (defaults) of the loss and so of its gradient; Adam with its defaults."""

    def write_objective(self) -> Callable[[Tensor, Tensor], Tensor]:
        compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(super().write_objective(), fullgraph=True)
        return compiled


class HandCompiledBest(Hand):
    """The fastest of several ways to compile, found by trials: a fused Adam, a compiled Adam, CUDA graphs."""

    fused = True

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        plain = self.objective
        ways: dict[str, tuple[dict[str, Any], bool]] = {"fused Adam": ({}, False), "compiled Adam": ({}, True)}
        if self.device.type == "cuda":
            ways["CUDA graphs, fused Adam"] = ({"mode": "reduce-overhead"}, False)
            ways["CUDA graphs, compiled Adam"] = ({"mode": "reduce-overhead"}, True)
        prepared, seconds = {}, {}
        for name, (options, compiled_adam) in ways.items():
            objective = torch.compile(plain, fullgraph=True, **options)
            prepared[name] = (objective, *self.adam(compiled_adam))
            self.use(prepared[name])
            self.steps(2)
            n = max(1, round(TRIAL_SECONDS / self.timed(1)))
            seconds[name] = statistics.median(self.timed(n) / n for _ in range(TRIALS))
        self.remark = min(seconds, key=lambda name: seconds[name])
        self.networks.set(problem.weights())
        objective, *_ = prepared[self.remark]
        self.use((objective, *self.adam(self.remark.endswith("compiled Adam"))))
        self.taken = 0

    def adam(self, compiled: bool) -> tuple[torch.optim.Optimizer, Callable[[], Any]]:
        """Returns a new Adam optimizer, and its step function."""
        if not compiled:
            optimizer = torch.optim.Adam(self.networks.parameters(), lr=RATE, fused=True)
            return optimizer, optimizer.step
        rate = torch.tensor(RATE, device=self.device)
        optimizer = torch.optim.Adam(self.networks.parameters(), lr=rate, capturable=self.device.type == "cuda")
        return optimizer, torch.compile(lambda: optimizer.step(), fullgraph=False)

    def use(self, way: tuple[Callable[[Tensor, Tensor], Tensor], torch.optim.Optimizer, Callable[[], Any]]) -> None:
        self.objective, self.optimizer, self.update = way

    def timed(self, n: int) -> float:
        start = time.perf_counter()
        self.steps(n)
        return time.perf_counter() - start

    def step(self, x: Tensor) -> None:
        loss = self.objective(x, torch.randn(self.problem.noise_shape, device=self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.update()


class Pythae(Contender):
    """pythae's VAE with the loop of its trainer over its loader, without progress bars."""

    estimator = "analytic"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

        networks = self.networks = Networks(problem.size).set(problem.weights())

        class Encoder(BaseEncoder):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.layers = networks.encoder

            def forward(self, x: Tensor) -> Any:
                loc, log_scale = self.layers(x).chunk(2, dim=-1)
                return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

        class Decoder(BaseDecoder):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.layers = networks.decoder

            def forward(self, z: Tensor) -> Any:
                return ModelOutput(reconstruction=self.layers(z).sigmoid())

        size = problem.size
        config = VAEConfig(input_dim=(size.data,), latent_dim=size.latent, reconstruction_loss="bce")
        model = VAE(config, encoder=Encoder(), decoder=Decoder())
        data = self.data.cpu()
        training = BaseTrainerConfig(
            per_device_train_batch_size=problem.batch, learning_rate=RATE, no_cuda=problem.device == "cpu"
        )
        self.trainer = BaseTrainer(model, BaseDataset(data, torch.zeros(len(data))), training_config=training)
        self.trainer.set_optimizer()
        self.trainer.callback_handler = CallbackHandler([TrainingCallback()], model)
        self.loader, self.model = _Some(self.trainer.train_loader), model
        self.trainer.train_loader = self.loader

    def loss(self, x: Array, noise: Array) -> tuple[float, Array]:
        data, epsilon = self.tensors(x, noise)
        with torch.no_grad(), AtNoise(epsilon):
            return float(self.model({"data": data}).loss), noise

    def steps(self, n: int) -> None:
        self.loader.count = n
        self.trainer.train_step(1)
        self.wait()
        self.taken += n

    def parameters(self) -> list[nn.Parameter]:
        return list(self.networks.parameters())


class _Some:
    """The next ``count`` minibatches of a loader, over epochs without end."""

    def __init__(self, loader: Any) -> None:
        self.dataset, self.count = loader.dataset, 1
        self._endless = chain.from_iterable(loader for _ in count())

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return islice(self._endless, self.count)


class MatrixProducts(Contender):
    """Only the matrix products of a step, forward and backward: a lower bound on the time of a step."""

    estimator = "none"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        make = np.random.default_rng(0).standard_normal
        self.layers = []
        for rows, inputs, outputs, times in matrix_products(problem):
            shapes = ((rows, inputs), (outputs, inputs), (rows, outputs))
            given = self.tensors(*(make(shape).astype(np.float32) for shape in shapes))
            self.layers.append((given, [torch.empty_like(tensor) for tensor in given], times))

    @torch.no_grad()
    def steps(self, n: int) -> None:
        for _ in range(n):
            for (x, weight, gradient), (into_x, into_weight, into_y), times in self.layers:
                torch.mm(x, weight.T, out=into_y)
                torch.mm(gradient.T, x, out=into_weight)
                if times == 3:
                    torch.mm(gradient, weight, out=into_x)
        self.wait()
        self.taken += n
