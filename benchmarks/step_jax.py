r"""Contenders of `benchmarks.step_time` in NumPyro: its `SVI`, jitted step by step or epoch by epoch."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

from benchmarks.step_problem import RATE, Array, Problem, Size

Parameters = list[Any]


class NumPyro:
    """A usual model and guide in NumPyro, and a state of its `SVI` on the device."""

    estimator = "sampled"
    remark = ""

    def __init__(self, problem: Problem) -> None:
        if problem.device == "cuda" and jax.default_backend() != "gpu":
            raise ImportError("the installed jax has no GPU")
        self.problem, self.taken = problem, 0
        self.data = jnp.asarray(problem.data())
        self.initial = [jnp.asarray(weight) for weight in problem.weights()]
        self.networks = layers_of(problem.size)
        k = problem.size.particles
        self.elbo = Trace_ELBO() if k == 1 else RenyiELBO(alpha=0, num_particles=k)
        self.svi = SVI(self.model, self.guide, numpyro.optim.Adam(RATE), self.elbo)
        self.state = self.svi.init(jax.random.PRNGKey(0), self.data[: problem.batch])
        self.key = jax.random.PRNGKey(1)
        self.rows, self.start = self.shuffled(), 0

    # ------------------------------------------------------------------ the program

    def network(self, part: str, given: Any) -> Any:
        n, forward = self.networks[part]
        first = 0 if part == "encoder" else self.networks["encoder"][0]
        weights = [numpyro.param(f"w{first + i:02d}", self.initial[first + i]) for i in range(n)]
        return forward(weights, given)

    def model(self, x: Any) -> None:
        latent = self.problem.size.latent
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=self.network("decoder", z)).to_event(1), obs=x)

    def guide(self, x: Any) -> Any:
        with numpyro.plate("data", x.shape[0]):
            loc, log_scale = jnp.split(self.network("encoder", x), 2, axis=-1)
            return numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    def loss(self, x: Array, noise: Array) -> tuple[float, Array]:
        """Returns the loss of the ELBO object, and the noise that the guide used."""
        parameters, data = self.svi.get_params(self.state), jnp.asarray(x)
        drawn: list[Any] = []

        def guide(x: Any) -> None:
            jax.debug.callback(lambda z: drawn.append(np.asarray(z)), self.guide(x))

        value = float(self.elbo.loss(jax.random.PRNGKey(2), parameters, self.model, guide, data)) / len(x)
        jax.effects_barrier()
        n, encoder = self.networks["encoder"]
        encoded = encoder([parameters[f"w{i:02d}"] for i in range(n)], data)
        loc, log_scale = np.split(np.asarray(encoded), 2, axis=-1)
        epsilon = (np.stack(drawn) - loc) / np.exp(log_scale)
        return value, epsilon.reshape(noise.shape)

    def weights(self) -> list[Array]:
        parameters = self.svi.get_params(self.state)
        return [np.asarray(parameters[name]) for name in sorted(parameters)]

    # ------------------------------------------------------------------ an epoch

    def shuffled(self) -> Any:
        self.key, own = jax.random.split(self.key)
        return _permutation(own, self.problem.rows)

    def step(self, state: Any, data: Any, rows: Any, start: Any) -> Any:
        """Takes one update with the minibatch at a position of the shuffled rows."""
        batch = self.problem.batch
        return self.svi.update(state, data[lax.dynamic_slice_in_dim(rows, start * batch, batch)])

    def advance(self, n: int) -> None:
        """Takes steps of one epoch."""
        raise NotImplementedError

    def steps(self, n: int) -> None:
        left, of_epoch = n, self.problem.rows // self.problem.batch
        while left:
            some = min(left, of_epoch - self.start)
            self.advance(some)
            self.start, left = self.start + some, left - some
            if self.start == of_epoch:
                self.rows, self.start = self.shuffled(), 0
        jax.block_until_ready(self.state)
        self.taken += n


class NumPyroStep(NumPyro):
    """`SVI.update` with the gathering of minibatches in `jax.jit`, called step by step."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.update = jax.jit(self.step, donate_argnums=0)

    def advance(self, n: int) -> None:
        for i in range(self.start, self.start + n):
            self.state, _ = self.update(self.state, self.data, self.rows, i)


class NumPyroEpoch(NumPyro):
    """All steps of an epoch in one `lax.fori_loop` in `jax.jit`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)

        def run(state: Any, data: Any, rows: Any, start: Any, end: Any) -> tuple[Any, Any]:
            def body(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
                state, loss = self.step(carry[0], data, rows, i)
                return state, carry[1] + loss

            return lax.fori_loop(start, end, body, (state, jnp.zeros(())))

        self.run = jax.jit(run, donate_argnums=0)

    def advance(self, n: int) -> None:
        self.state, self.total = self.run(self.state, self.data, self.rows, self.start, self.start + n)


@partial(jax.jit, static_argnums=1)
def _permutation(key: Any, n: int) -> Any:
    return jax.random.permutation(key, n)


# ---------------------------------------------------------------------- networks


def layers_of(size: Size) -> dict[str, tuple[int, Any]]:
    """Returns the number of weights and the forward function of encoder and decoder."""
    if size.channels:
        return {"encoder": (6, _encoder), "decoder": (6, _decoder)}
    n = 2 * (len(size.hidden) + 1)
    return {"encoder": (n, _mlp), "decoder": (n, _mlp)}


def _mlp(weights: Parameters, given: Any) -> Any:
    *hidden, (last, shift) = zip(weights[::2], weights[1::2], strict=True)
    for weight, bias in hidden:
        given = jnp.tanh(given @ weight.T + bias)
    return given @ last.T + shift


_IMAGES = ("NCHW", "OIHW", "NCHW")


def _encoder(weights: Parameters, x: Any) -> Any:
    first, b_first, second, b_second, last, b_last = weights
    maps = x.reshape(-1, 1, 28, 28)
    for weight, bias in ((first, b_first), (second, b_second)):
        maps = lax.conv_general_dilated(maps, weight, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_IMAGES)
        maps = jax.nn.relu(maps + bias[:, None, None])
    return maps.reshape(*x.shape[:-1], -1) @ last.T + b_last


def _decoder(weights: Parameters, z: Any) -> Any:
    linear, b_linear, first, b_first, second, b_second = weights
    maps = jax.nn.relu((z @ linear.T + b_linear).reshape(-1, first.shape[0], 7, 7))
    maps = jax.nn.relu(_transposed(maps, first, b_first))
    return _transposed(maps, second, b_second).reshape(*z.shape[:-1], -1)


def _transposed(maps: Any, weight: Any, bias: Any) -> Any:
    """Returns a 4 x 4 transposed convolution of stride 2 and padding 1, with PyTorch's weights, (in, out, 4, 4)."""
    kernel = jnp.flip(weight, (2, 3)).transpose(1, 0, 2, 3)
    out = lax.conv_general_dilated(
        maps, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_IMAGES
    )
    return out + bias[:, None, None]
