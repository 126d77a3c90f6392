r"""A conditional VAE of digits of which few have a label.

.. math:: y \sim \mathrm{Categorical}, \qquad z \sim N(0, I), \qquad
    x | y, z \sim \mathrm{Bernoulli}(\mathrm{decoder}(z, y))

The model marks y for enumeration: it is summed out, and a factor takes all values but the label out where there is
one. So one program holds labelled and unlabelled images. After training it is a classifier, p(y|x), and it draws
images of a given digit.

Run: ``python -m examples.semi_supervised``.

Reference: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative models", 2014, section
3. There q(y|x) is a network; here the sum over y is exact given z.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import Program, Training, datasets, fit
from pyro_vae.evaluation import site_probabilities
from pyro_vae.inference import IWAE

PIXELS, LATENT, HIDDEN, CLASSES, UNKNOWN = 64, 8, 200, 10, -1


class Decoder(nn.Module):
    """Logits of the pixels given z and y."""

    def __init__(self) -> None:
        super().__init__()
        self.of_z, self.of_y = nn.Linear(LATENT, HIDDEN), nn.Linear(CLASSES, HIDDEN, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(HIDDEN, PIXELS))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Returns logits.

        Arguments:
            z: Shape ``(..., 8)``.
            y: One-hot, shape ``(..., 10)``; an enumerated y has more dimensions on the left than z.
        """
        return self.rest(self.of_z(z) + self.of_y(y))


def program(example: dict[str, Tensor]) -> Program:
    """Returns model and guide as a `Program`.

    Arguments:
        example: ``x`` of shape ``(B, 64)``, ``label`` of shape ``(B,)``, -1 where it is unknown.
    """
    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = Decoder()

    def model(batch: dict[str, Tensor]) -> None:
        pyro.module("decoder", decoder)
        x, label = batch["x"], batch["label"]
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(CLASSES) / CLASSES), infer={"enumerate": "parallel"})
            with pyro.poutine.mask(mask=label != UNKNOWN):
                pyro.factor("label", torch.where(y.argmax(-1) == label, 0.0, -torch.inf))
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z, y)).to_event(1), obs=x)

    def guide(batch: dict[str, Tensor]) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(batch["x"])):
            loc, log_scale = encoder(batch["x"]).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Program(model, guide, example)


def main(epochs: int = 40, labelled: int = 100, repeats: int = 10) -> float:
    """Trains on digits, of which few have a label, and prints the accuracy on test images.

    Arguments:
        epochs: Number of epochs.
        labelled: Number of training images with a label.
        repeats: How many more times these images are in the training data, so that the labels count beside the others.

    Returns:
        The share of test images whose most probable y is their label.
    """
    data = datasets.load("digits", support=dist.Bernoulli.support, binarisation="static")
    torch.manual_seed(0)
    label = torch.full((len(data.train),), UNKNOWN)
    label[:labelled] = data.labels["train"][:labelled]
    rows = torch.cat([torch.arange(len(label)), torch.arange(labelled).repeat(repeats)])
    train = {"x": data.train[rows], "label": label[rows]}
    trained = program({name: part[:100] for name, part in train.items()})
    fit(trained, train, IWAE(), Training(epochs=epochs), seed=0)
    test = {"x": data.test, "label": torch.full((len(data.test),), UNKNOWN)}
    found = site_probabilities(trained, test, "y", num_samples=200).argmax(-1)
    accuracy = float((found == data.labels["test"]).float().mean())
    print(f"accuracy with {labelled} labels of {len(label)}: {accuracy:.3f}; by chance about 0.1")
    return accuracy


if __name__ == "__main__":
    main()
