r"""Random draws as explicit inputs: a program as a function of its standard noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pyro_vae.engine.capture.location import current_location
from pyro_vae.engine.capture.opaque import OPAQUE
from pyro_vae.engine.errors import CaptureError
from pyro_vae.runtime.random_streams import depth

aten = torch.ops.aten


class Draw(NamedTuple):
    """One draw of standard noise.

    Attributes:
        kind: ``"normal"``, N(0, 1); ``"uniform"`` on [0, 1); ``"exponential"`` of rate 1.
        shape: Shape of the noise.
        dtype: Type of the noise.
        device: Device of the noise.
    """

    kind: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Returns the noise, from torch's global random stream or from a generator."""
        return self.fill(torch.empty(self.shape, dtype=self.dtype, device=self.device), generator)

    def fill(self, out: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Fills a tensor of the noise's shape like `sample`, and returns it."""
        return _SAMPLERS[self.kind](out, generator)


_SAMPLERS: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "normal": lambda empty, generator: empty.normal_(generator=generator),
    "uniform": lambda empty, generator: empty.uniform_(generator=generator),
    "exponential": lambda empty, generator: empty.exponential_(generator=generator),
}

Source = Callable[[Draw], Tensor]


class Lifted(TorchDispatchMode):
    r"""A block in which normal, uniform, exponential, Bernoulli and categorical draws are functions of standard noise.

    .. math:: \mu + \sigma \epsilon, \qquad a + (b - a) u, \qquad e / \lambda, \qquad [u < p], \qquad F^{-1}(u)

    So a program and its captured graph are the same function of the noise. Standard normal, uniform and exponential
    draws equal torch's draws from the same seed bit by bit; shifted and scaled ones equal them up to rounding.
    Bernoulli and categorical draws, dropout, whole numbers and permutations have the same law, but another stream.
    Draws within a block of `isolated` come from the seed of that block, so they are always the same. Draws from gamma,
    Dirichlet, Poisson and binomial distributions are no functions of standard noise; they stay draws from torch's
    random stream. Draws from an explicit generator are not changed.

    Arguments:
        source: Function that returns the noise of each draw, in the order of the program; by default from torch's
            random stream.

    Raises:
        CaptureError: Within the block, if given noise does not fit.

    Example:
        >>> noise = [torch.tensor([0.5, -0.5])]
        >>> with Lifted.at(noise):
        ...     10 + torch.randn(2)
        tensor([10.5000,  9.5000])
    """

    def __init__(self, source: Source = Draw.sample) -> None:
        super().__init__()
        self.source, self._depth = source, 0

    def __enter__(self) -> Self:
        self._depth = depth()
        return super().__enter__()

    @classmethod
    def at(cls, noise: Iterable[Tensor], draws: Sequence[Draw] = ()) -> Lifted:
        """Returns the block with given noise.

        Arguments:
            noise: Noise of each draw, in order.
            draws: Expected draws; the block raises a `CaptureError` at the first different draw.
        """
        values, expected = iter(noise), iter(draws)

        def source(draw: Draw) -> Tensor:
            if draws and next(expected, None) != draw:
                raise CaptureError(
                    f"capture: the program draws differently from run to run, at {current_location()}; its draws must "
                    "not depend on values or on the number of runs."
                )
            value = next(values, None)
            if value is None or value.shape != draw.shape:
                found = "there is none left" if value is None else f"it has shape {tuple(value.shape)}"
                raise CaptureError(
                    f"capture: the draw at {current_location()} needs {draw.kind} noise of shape {tuple(draw.shape)}, "
                    f"but {found}; give the noise of each draw, in order."
                )
            return value.clone()  # the program may change it in place

        return cls(source)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        rule = _RULES.get(function)
        if rule is None or named.get("generator") is not None:
            opaque = None if named.get("generator") is not None else OPAQUE.get(function)
            return (opaque or function)(*arguments, **({} if opaque else named))
        with torch.no_grad():
            return rule(self, *arguments, **{k: v for k, v in named.items() if k != "generator"})

    def noise(self, kind: str, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Returns the next noise, of the type and device of a tensor; also of its shape, unless ``shape`` is given."""
        dtype = like.dtype if like.dtype.is_floating_point else torch.get_default_dtype()
        return self._next(Draw(kind, torch.Size(like.shape if shape is None else shape), dtype, like.device))

    def level(self, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Returns uniform noise for comparison with a probability, at least in float32 (others are too coarse)."""
        return self.noise("uniform", like.float() if like.dtype.itemsize < 4 else like, shape)

    def made(self, kind: str, size: Sequence[int], **options: Any) -> Tensor:
        """Returns the next noise, with the size and options of a factory function such as ``torch.randn``."""
        dtype = options.get("dtype") or torch.get_default_dtype()
        device = torch.device(options.get("device") or "cpu")
        return self._next(Draw(kind, torch.Size(size), dtype, device))

    def _next(self, draw: Draw) -> Tensor:
        if depth() == self._depth:
            return self.source(draw)
        with _disable_current_modes():  # a constant for a tracer
            return draw.sample()


def _normal_(mode: Lifted, out: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return out.copy_(_scaled(mode.noise("normal", out), mean, std))


def _normal(mode: Lifted, mean: Any = 0.0, std: Any = 1.0, size: Any = None, **options: Any) -> Tensor:
    if size is not None:
        return _scaled(mode.made("normal", size, **options), mean, std)
    like = mean if isinstance(mean, Tensor) else std
    shape = torch.broadcast_shapes(*(t.shape for t in (mean, std) if isinstance(t, Tensor)))
    return _scaled(mode.noise("normal", like, shape), mean, std)


def _scaled(noise: Tensor, mean: Any, std: Any) -> Tensor:
    plain = not isinstance(mean, Tensor) and not isinstance(std, Tensor)
    return noise if plain and mean == 0 and std == 1 else noise * std + mean


def _like(kind: str) -> Callable[..., Tensor]:
    def rule(mode: Lifted, like: Tensor, **options: Any) -> Tensor:
        dtype, device = options.get("dtype") or like.dtype, options.get("device") or like.device
        return mode.made(kind, like.shape, dtype=dtype, device=device)

    return rule


def _factory(kind: str) -> Callable[..., Tensor]:
    return lambda mode, size, **options: mode.made(kind, size, **options)


def _uniform_(mode: Lifted, out: Tensor, low: float = 0.0, high: float = 1.0, **named: float) -> Tensor:
    low = named.get("from", low)
    noise = mode.noise("uniform", out)
    return out.copy_(noise if (low, high) == (0.0, 1.0) else noise * (high - low) + low)


def _exponential_(mode: Lifted, out: Tensor, lambd: float = 1.0) -> Tensor:
    return out.copy_(mode.noise("exponential", out) / lambd)


def _log_normal_(mode: Lifted, out: Tensor, mean: float = 1.0, std: float = 2.0) -> Tensor:
    return out.copy_(_scaled(mode.noise("normal", out), mean, std).exp())


def _cauchy_(mode: Lifted, out: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return out.copy_(median + sigma * torch.tan(torch.pi * (mode.noise("uniform", out) - 0.5)))


def _geometric_(mode: Lifted, out: Tensor, p: float) -> Tensor:
    # An exponential waiting time of rate -log(1 - p), rounded up to whole steps.
    wait = mode.noise("exponential", out)
    return out.copy_((wait / -math.log1p(-p)).floor() + 1 if p < 1 else torch.ones_like(wait))


def _bernoulli(mode: Lifted, probabilities: Tensor, p: float | None = None) -> Tensor:
    threshold = probabilities if p is None else p
    return (mode.level(probabilities) < threshold).to(probabilities.dtype)


def _bernoulli_(mode: Lifted, out: Tensor, p: Tensor | float = 0.5) -> Tensor:
    return out.copy_(mode.level(out) < p)


def _dropout(mode: Lifted, given: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return given.clone(), torch.ones_like(given, dtype=torch.bool)
    kept = mode.level(given) < 1 - p
    return given * kept / (1 - p) if p < 1 else torch.zeros_like(given), kept


def _multinomial(mode: Lifted, weights: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
    if not replacement and num_samples > 1:
        return aten.multinomial.default(weights, num_samples, replacement)
    cumulative = (weights.float() if weights.dtype.itemsize < 4 else weights).cumsum(-1)
    total = cumulative[..., -1:]
    u = mode.level(weights, (*weights.shape[:-1], num_samples))
    # Strictly below the total: if the product rounds up, no category of weight 0 at the end is drawn.
    level = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    # Weights that are nan or all zero have no category; any valid index is returned.
    return torch.searchsorted(cumulative.contiguous(), level.contiguous(), right=True).clamp(max=weights.shape[-1] - 1)


def _whole(low: int, high: int, u: Tensor) -> Tensor:
    return (u * (high - low)).floor() + low


def _random_(mode: Lifted, out: Tensor, low: int, high: int | None = None) -> Tensor:
    low, high = (0, low) if high is None else (low, high)
    return out.copy_(_whole(low, high, mode.made("uniform", out.shape, dtype=torch.float64, device=out.device)))


def _randint(mode: Lifted, low: int, high: int, size: Sequence[int], **options: Any) -> Tensor:
    u = mode.made("uniform", size, dtype=torch.float64, device=options.get("device"))
    return _whole(low, high, u).to(options.get("dtype") or torch.int64)


def _randint_like(mode: Lifted, like: Tensor, low: int, high: int, **options: Any) -> Tensor:
    kind = {"dtype": options.get("dtype") or like.dtype, "device": options.get("device") or like.device}
    return _randint(mode, low, high, like.shape, **kind)


def _randperm(mode: Lifted, n: int, **options: Any) -> Tensor:
    u = mode.made("uniform", (n,), dtype=torch.float64, device=options.get("device"))
    return u.argsort().to(options.get("dtype") or torch.int64)


_RULES: dict[Any, Callable[..., Any]] = {
    aten.normal_.default: _normal_,
    aten.normal.Tensor_Tensor: _normal,
    aten.normal.Tensor_float: _normal,
    aten.normal.float_Tensor: _normal,
    aten.normal.float_float: _normal,
    aten.randn.default: _factory("normal"),
    aten.randn_like.default: _like("normal"),
    aten.rand.default: _factory("uniform"),
    aten.rand_like.default: _like("uniform"),
    aten.uniform_.default: _uniform_,
    aten.exponential_.default: _exponential_,
    aten.log_normal_.default: _log_normal_,
    aten.cauchy_.default: _cauchy_,
    aten.geometric_.default: _geometric_,
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli.p: _bernoulli,
    aten.bernoulli_.float: _bernoulli_,
    aten.bernoulli_.Tensor: _bernoulli_,
    aten.native_dropout.default: _dropout,
    aten.multinomial.default: _multinomial,
    getattr(aten.random_, "from"): _random_,
    aten.random_.to: _random_,
    aten.randint.default: lambda mode, high, size, **options: _randint(mode, 0, high, size, **options),
    aten.randint.low: _randint,
    aten.randint_like.default: lambda mode, like, high, **options: _randint_like(mode, like, 0, high, **options),
    aten.randint_like.low_dtype: _randint_like,
    aten.randperm.default: _randperm,
}
