r"""Two modalities with one latent: the upper and the lower half of a digit, of which one may be missing.

.. math:: z \sim N(0, I), \qquad x_m | z \sim \mathrm{Bernoulli}(\mathrm{decoder}_m(z)), \qquad
    q(z | x_S) \propto N(z; 0, I) \prod_{m \in S} N(z; \mathrm{encoder}_m(x_m))

The guide is a product of one Normal for each half that is there, so that it works for any subset S. A mask leaves the
missing half out of the model. After training, the upper half predicts the lower one.

Run: ``python -m examples.two_modalities``.

Reference: Wu and Goodman, "Multimodal generative models for scalable weakly-supervised learning", 2018, section 2.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import Program, Training, datasets, fit
from pyro_vae.evaluation import log_marginal
from pyro_vae.inference import IWAE

HALVES, PIXELS, LATENT, HIDDEN = ("upper", "lower"), 32, 8, 128


def program(example: dict[str, Tensor]) -> Program:
    """Returns model and guide as a `Program`.

    Arguments:
        example: ``upper`` and ``lower`` of shape ``(B, 32)``; ``has_upper`` and ``has_lower``, boolean, ``(B,)``.
    """
    encoders = nn.ModuleDict(
        {half: nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT)) for half in HALVES}
    )
    decoders = nn.ModuleDict(
        {half: nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS)) for half in HALVES}
    )

    def model(batch: dict[str, Tensor]) -> None:
        pyro.module("decoders", decoders)
        x = batch["upper"]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            for half in HALVES:
                with pyro.poutine.mask(mask=batch[f"has_{half}"]):
                    pyro.sample(half, dist.Bernoulli(logits=decoders[half](z)).to_event(1), obs=batch[half])

    def guide(batch: dict[str, Tensor]) -> None:
        pyro.module("encoders", encoders)
        x = batch["upper"]
        precision, weighted = x.new_ones(len(x), LATENT), x.new_zeros(len(x), LATENT)
        for half in HALVES:
            loc, log_precision = encoders[half](batch[half]).chunk(2, dim=-1)
            own = log_precision.exp() * batch[f"has_{half}"].unsqueeze(-1)
            precision, weighted = precision + own, weighted + own * loc
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weighted / precision, precision.rsqrt()).to_event(1))

    return Program(model, guide, example)


def halves(x: Tensor, upper: Tensor | bool = True, lower: Tensor | bool = True) -> dict[str, Tensor]:
    """Returns images as two halves.

    Arguments:
        x: Shape ``(N, 64)``.
        upper: Which images have an upper half.
        lower: Which images have a lower half.
    """
    both = torch.ones(len(x), dtype=torch.bool)
    return {"upper": x[:, :PIXELS], "lower": x[:, PIXELS:], "has_upper": both & upper, "has_lower": both & lower}


def main(epochs: int = 100) -> dict[str, float]:
    """Trains on digits, a third of them without a lower and a third without an upper half.

    It prints log p(x) of a test image's lower half alone, and given its upper half: log p(lower | upper) is
    log p(upper, lower) - log p(upper).

    Returns:
        Both, in nats per image.
    """
    data = datasets.load("digits", support=dist.Bernoulli.support, binarisation="static")
    torch.manual_seed(0)
    third = torch.arange(len(data.train)) % 3
    train = halves(data.train, third != 1, third != 2)
    trained = program({name: part[:100] for name, part in train.items()})
    fit(trained, train, IWAE(), Training(epochs=epochs), seed=0)
    given = {"both": (True, True), "upper": (True, False), "lower": (False, True)}
    values = {
        name: log_marginal(trained, halves(data.test, *present), num_samples=1000).value
        for name, present in given.items()
    }
    found = {"lower": values["lower"], "lower given upper": values["both"] - values["upper"]}
    for name, value in found.items():
        print(f"log p({name}): {value:.2f}")
    return found


if __name__ == "__main__":
    main()
