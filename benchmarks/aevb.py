r"""The experiments of Kingma and Welling, "Auto-encoding variational Bayes", 2013: shared parts of figures 2 to 5.

Networks, optimizer, regulariser, minibatches and initial values are those of the paper's section 5 and appendices C
to E. The paper does not specify the following choices:

* `TRAINING`: the first 50,000 MNIST images (the training set in the first author's copy of MNIST, and the larger set
  of figure 3); all 10,000 test images. For Frey Face, 1,600 random training images and the other 365 as test images.
  The paper's wake-sleep ends on Frey Face at 579 nats (training) and 569 (test). One Gaussian for each pixel, fitted
  to the training data without latents, has 576.8 ± 1.8 and 577 ± 8 (standard deviation over splits) with grey levels
  in 256ths and 1,600 random training images. With the first 1,500 images of the video it has 577.0 and 553.6. So the
  paper's split may be like the former, but not like the latter.
* `GREY_LEVELS`: Frey Face in 256ths, as in the first author's code. A density in these units is 560 log(256/255) =
  2.2 nats above that in 255ths.
* Binarisation of MNIST: `none` keeps grey levels in [0, 1]; the Bernoulli's log-probability is then a cross-entropy,
  not a log-likelihood. `threshold` maps values of at least 0.5 to 1, others to 0; `dynamic` draws for each minibatch;
  `static` draws once.
* Warm-up of Adagrad: in the first author's later code, the first 100 steps sum squared gradients without an update.
* Minibatches: each epoch in a new order, without replacement (in that code with replacement).
* `INITIAL_STD`: the paper writes N(0, 0.01); in that code, 0.01 is the standard deviation.
* `WAKE_SLEEP_LOG_VARIANCE`: in that code, wake-sleep's encoder has log variances of a tenth of its outputs
  (models/MLBN_Inverse.py; biases are not scaled there), while the paper says "the same encoder". At 1e6 samples, both
  are about equally near to the published curves; see `benchmarks.aevb_figure2_study`.
* `WAKE_SLEEP_CHOICE_SAMPLES`: the stepsize of wake-sleep is chosen later, since it has a larger effect: at 1e6 samples
  with 200 latents, stepsize 0.01 gives -172 and 0.02 gives -128 (with unscaled log variances -179 and -133), by the
  scores of that study.
* The prior N(0, I), p(theta) in the paper, is over the weight matrices of the generative model, without biases, as in
  that code. That code has such a prior over the encoder's weights too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform, SigmoidTransform

from pyro_vae import VAE, Conditional, Fixed, Network, Training, fit, mlp
from pyro_vae.datasets import Data, load
from pyro_vae.evaluation import elbo
from pyro_vae.inference import AEVB, MCEM, AnalyticKL, Inference, WakeSleep
from pyro_vae.runtime.random_streams import isolated

BATCH = 100  # M; section 2.3
STEPSIZES = (0.01, 0.02, 0.1)  # of Adagrad; section 5
CHOICE_SAMPLES = 100_000  # a stepsize is chosen after these: "performance in the first few iterations"
WAKE_SLEEP_CHOICE_SAMPLES = 1_000_000  # the same for wake-sleep
WAKE_SLEEP_LOG_VARIANCE = 0.1  # factor of the encoder's outputs; anglepy, models/MLBN_Inverse.py
OWN: dict[str, dict[str, Any]] = {
    "wake-sleep": {"encoder_log_variance": WAKE_SLEEP_LOG_VARIANCE},
    "mcem": {"warmup": 0},
}
INITIAL_STD = 0.01  # of all parameters; section 5
WARMUP = 100  # steps of Adagrad without update; anglepy, wzoptim.py
HIDDEN = {"mnist": 500, "frey": 200}  # hidden units of encoder and decoder in figures 2, 4 and 5
LATENTS = {"mnist": (3, 5, 10, 20, 200), "frey": (2, 5, 10, 20)}  # N_z in figure 2
TRAINING = {"mnist": 50_000, "frey": 1_600}
GREY_LEVELS = 256  # divisor of Frey Face; anglepy, data/freyface.py
BINARISATIONS = ("none", "threshold", "dynamic", "static")
EVALUATION_SEED = 2013

ALGORITHMS: dict[str, Callable[[], Inference]] = {
    "aevb": AEVB,  # L = 1
    "analytic-kl": AnalyticKL,
    "wake-sleep": WakeSleep,
    "mcem": MCEM,
}
TITLES = {"aevb": "AEVB", "analytic-kl": "analytic KL", "wake-sleep": "wake-sleep", "mcem": "MCEM"}
COLOURS = {"aevb": "#D55E00", "analytic-kl": "#009E73", "wake-sleep": "#0072B2", "mcem": "#CC79A7"}
DATA_TITLES = {"mnist": "MNIST", "frey": "Frey Face"}

_PUBLISHED = Path(__file__).parent / "published" / "aevb.json"


@dataclass(frozen=True)
class Setting:
    """Choices of a run that the paper does not specify.

    Attributes:
        binarisation: Binarisation of MNIST, one of `BINARISATIONS`; Frey Face is not binarised.
        warmup: Number of steps of Adagrad without update.
        initial_std: Standard deviation of the initial parameters.
        encoder_log_variance: Factor from the encoder's outputs to log variances.
    """

    binarisation: str = "none"
    warmup: int = WARMUP
    initial_std: float = INITIAL_STD
    encoder_log_variance: float = 1.0

    def of(self, algorithm: str) -> Setting:
        """Returns the setting with the special values of an algorithm in the first author's code."""
        return replace(self, **OWN.get(algorithm, {}))


def load_data(name: str, binarisation: str = "none", size: int | None = None) -> Data:
    """Returns ``"mnist"`` or ``"frey"``, with training and test data as in the module's docstring.

    Arguments:
        name: Name of the data set.
        binarisation: Binarisation of MNIST.
        size: Number of training data to keep, from the start; all by default.
    """
    if name == "frey":
        total = 1965
        data = load("frey", scaling="none", split=(TRAINING["frey"] / total, 0.0, 1 - TRAINING["frey"] / total))
        data = replace(data, train=data.train / GREY_LEVELS, test=test_of(data) / GREY_LEVELS)
    else:
        data = load(name, support=constraints.boolean, binarisation=binarisation)
    return replace(data, train=data.train[: TRAINING[name] if size is None else size])


def test_of(data: Data) -> Tensor:
    """Returns the test data; raises if there are none."""
    if data.test is None:
        raise ValueError(f"{data.name} has no test data")
    return data.test


def make_vae(data: Data, latents: int, hidden: int, seed: int, setting: Setting | None = None) -> VAE:
    r"""Returns the VAE of appendix C: one hidden layer of tanh units in encoder and decoder; linear log variances.

    The likelihood is Bernoulli for MNIST, and Normal with its mean in (0, 1) for Frey Face. One seed always gives the
    same initial values. The prior over weights is for a data set of size ``len(data.train)``.

    Arguments:
        data: Data to model.
        latents: N_z, the number of latents.
        hidden: Number of units of each hidden layer.
        seed: Seed of the initial values.
        setting: Choices that the paper does not specify.
    """
    setting = Setting() if setting is None else setting
    pixels = data.train.shape[1]

    # As in the paper, the networks output log variances, so Adagrad's steps are steps of these.
    def spread(factor: float) -> Network:
        return Network(transform=ComposeTransform([AffineTransform(0.0, 0.5 * factor), ExpTransform()]))

    with isolated(seed, "networks"):
        prior = Conditional(dist.Normal, (latents,), loc=Fixed(0.0), scale=Fixed(1.0))
        decoder, encoder = mlp(latents, hidden), mlp(pixels, hidden)
        if data.name == "frey":
            sources = {"loc": Network(transform=SigmoidTransform()), "scale": spread(1.0)}
            likelihood = Conditional(dist.Normal, (pixels,), given=decoder, **sources)
        else:
            likelihood = Conditional(dist.Bernoulli, (pixels,), given=decoder)
        posterior = Conditional(dist.Normal, (latents,), given=encoder, scale=spread(setting.encoder_log_variance))
        vae = VAE(prior, likelihood, posterior, size=len(data.train), parameter_prior=dist.Normal(0.0, 1.0))
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.normal_(0.0, setting.initial_std)
    return vae


def training(data: Data, setting: Setting, stepsize: float, steps: int, compile: bool) -> Training:
    """Returns the settings of a run by the protocol.

    Arguments:
        data: Which are trained on.
        setting: What the paper leaves open.
        stepsize: Stepsize of Adagrad.
        steps: Number of minibatches.
        compile: Whether the steps run compiled.
    """
    return Training(
        optimizer=lambda parameters: torch.optim.Adagrad(parameters, lr=stepsize),
        schedule=waiting(setting.warmup) if setting.warmup else None,
        steps=steps,
        batch_size=batch_size(data),
        start_at_data=False,  # the initial values are those of the paper
        check_support=not data.cross_entropy,
        divergence="stop",
        compile=compile,
    )


def batch_size(data: Data) -> int:
    """Returns the size of the protocol's minibatches."""
    return min(BATCH, len(data.train))


def protocol(setting: Setting) -> dict[str, Any]:
    """Returns the settings of the protocol, which are common to all figures."""
    return {
        **asdict(setting),
        "batch_size": BATCH,
        "optimizer": "Adagrad",
        "stepsizes": STEPSIZES,
        "wake_sleep_encoder_log_variance": WAKE_SLEEP_LOG_VARIANCE,
        "parameter_prior": "N(0, 1) on the weight matrices of the generative model",
    }


def waiting(steps: int) -> Callable[[int], float]:
    """Returns a factor of the stepsize: 0 for ``steps`` steps, in which Adagrad only sums squares, then 1."""
    return lambda step: 0.0 if step < steps else 1.0


def evaluated_data(data: Data, size: int = 10_000) -> dict[str, Tensor]:
    """Returns the data of the curves: the first ``size`` training data, and all test data.

    With dynamic binarisation, both are drawn once.
    """
    train = data.train[:size]
    if data.binarisation == "dynamic":
        train = data.transform(train, torch.Generator().manual_seed(EVALUATION_SEED))
    return {"train": train, "test": test_of(data)}


def bound(vae: VAE, x: Tensor, seed: int = EVALUATION_SEED) -> float:
    """Returns the ELBO with one draw of z for each datum, in nats per datum; for grey levels, a cross-entropy."""
    with pyro.validation_enabled(False):  # validation refuses grey levels
        return elbo(vae, x, num_samples=1, seed=seed, compile=False).value


def choice_samples(algorithm: str) -> int:
    """Returns the number of samples after which an algorithm's stepsize is chosen."""
    return WAKE_SLEEP_CHOICE_SAMPLES if algorithm == "wake-sleep" else CHOICE_SAMPLES


def choose_stepsize(
    make: Callable[[], VAE],
    inference: Callable[[], Inference],
    data: Data,
    setting: Setting,
    *,
    score: Callable[[VAE], float] | None = None,
    samples: int = CHOICE_SAMPLES,
    batch: int | None = None,
    seed: int = 0,
    compile: bool = True,
) -> dict[str, Any]:
    """Returns the stepsize with the best score on training data after a short training, and all scores.

    Arguments:
        make: Makes the VAE, always the same.
        inference: Makes the algorithm.
        data: Which are trained on.
        setting: What the paper leaves open.
        score: Of the trained VAE, higher is better; default: its bound on 10,000 training data.
        samples: How many are evaluated in training.
        batch: Size of the minibatches; by default the protocol's.
        seed: Seed of the runs.
        compile: Whether their steps run compiled.

    Returns:
        ``{"stepsize": 0.02, "scores": {"0.01": -181.3, ...}}``, with null for a run that diverged.
    """
    x = evaluated_data(data)["train"]
    scores: dict[str, float | None] = {}
    for stepsize in STEPSIZES:
        vae, size = make(), batch_size(data) if batch is None else batch
        how = replace(training(data, setting, stepsize, -(-samples // size), compile), batch_size=size)
        history = fit(vae, data.train, inference(), how, seed=seed, transform=data.minibatch_transform)
        value = -math.inf if history.stopped == "diverged" else (bound(vae, x) if score is None else score(vae))
        scores[f"{stepsize:g}"] = value if math.isfinite(value) else None
    best = max(STEPSIZES, key=lambda stepsize: _or_least(scores[f"{stepsize:g}"]))
    return {"stepsize": best, "scores": scores}


def _or_least(value: float | None) -> float:
    return -math.inf if value is None else value


@cache
def published() -> dict[str, Any]:
    """Returns the digitised curves of the paper: ``["figure 2"][data set][N_z][algorithm][part]``, lists of points."""
    content: dict[str, Any] = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    return content


def digitised(curve: list[list[float]], samples: float) -> float | None:
    """Returns the value of a digitised point of a published curve; None if there is no point there.

    Arguments:
        curve: Points ``[samples, value]``.
        samples: Number of samples of the point, to within 2 %.
    """
    return next((value for at, value in curve if abs(math.log(at / samples)) < 0.02), None)


def value_at(curve: list[list[float]], samples: float) -> float | None:
    """Returns the value of a curve at a number of samples, interpolated in their logarithm; None outside the curve.

    Arguments:
        curve: Points ``[samples, value]``, in order.
        samples: Number of samples.
    """
    for at, value in curve:  # the curve may be a single point
        if math.isclose(at, samples, rel_tol=1e-6):
            return value
    for (left, low), (right, high) in pairwise(curve):
        if left * (1 - 1e-6) <= samples <= right * (1 + 1e-6):
            share = math.log(samples / left) / math.log(right / left)
            return low + min(1.0, max(0.0, share)) * (high - low)
    return None


SOURCE = f"{published()['source']}: {published()['how']}"
