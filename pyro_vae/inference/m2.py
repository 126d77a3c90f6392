r"""Semi-supervised learning: known labels are used, and unknown labels are summed over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import pyro.distributions as dist
import torch
from pyro.distributions import is_validation_enabled
from torch import Tensor

from pyro_vae.batch import Batch, DataLike
from pyro_vae.errors import InputError
from pyro_vae.inference.interface import Inference, Loss, check_count, check_number
from pyro_vae.inference.requirements import PATHWISE, labels_as_context
from pyro_vae.networks.mlp import mlp
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.inputs import batch_for
from pyro_vae.vae.latent_variable_model import LatentVariableModel
from pyro_vae.vae.vae import VAE


class M2(Inference):
    r"""The semi-supervised model M2: the context is a one-hot label y, or a row of nan if y is unknown.

    .. math:: \log p(x, y) \ge \mathcal{L}(x, y) = E_{q(z|x,y)}[\log p(x, z|y) - \log q(z|x,y)] + \log p(y), \qquad
        \log p(x) \ge \mathcal{U}(x) = \sum_y q(y|x) \mathcal{L}(x, y) + H(q(y|x))

    The objective is the mean over data of :math:`\mathcal{L}` (known label) or :math:`\mathcal{U}` (unknown label),
    plus ``alpha`` times the mean over data of :math:`\log q(y|x)`, with 0 for unknown labels; p(y) is uniform. The sum
    over y is exact; it costs one pass of encoder and decoder for each of C labels. If q(y|x) and q(z|x,y) are exact,
    :math:`\mathcal{U}` is log p(x). The reported bound does not contain the classifier's term.

    The classifier q(y|x) belongs to this algorithm. `check` makes it, with initial weights that depend on the VAE's;
    see `classify`. Evaluation functions use the VAE alone, which is p(x|y): give them data with known labels.

    Arguments:
        hidden: Sizes of the hidden layers of q(y|x).
        alpha: Weight of log q(y|x) of a datum with a known label. The reference uses 0.1 N/n, for n known labels in
            N data.
        num_particles: K, draws of z for each datum and label.

    Reference: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative models", 2014,
    equations 6 to 9.

    Example:
        >>> M2(alpha=100.0)
        M2(hidden=(200,), alpha=100.0, num_particles=1)
    """

    name: ClassVar[str] = "m2"
    needs = (*PATHWISE, labels_as_context)
    takes_unknown_labels: ClassVar[bool] = True

    def __init__(self, hidden: Sequence[int] = (200,), alpha: float = 10.0, num_particles: int = 1) -> None:
        super().__init__()
        if not isinstance(hidden, list | tuple):
            raise InputError(f"M2: `hidden` is a list of sizes such as [200], got `{hidden!r}`.")
        self.hidden = tuple(check_count("M2", "hidden", size) for size in hidden)
        self.alpha = check_number("M2", "alpha", alpha, 0.0)
        self.num_particles = check_count("M2", "num_particles", num_particles)
        self.classifier: Conditional | None = None

    def check(self, vae: LatentVariableModel) -> None:
        """Makes the classifier for this VAE; raises an `InputError` if the VAE cannot be trained."""
        super().check(vae)
        sizes = cast(VAE, vae).event_shape.numel(), vae.context_features
        if self.classifier is None:
            # The seed depends on the VAE's initial weights alone, so the caller's random streams stay as they are.
            seed = sum(float(p.detach().cpu().double().abs().sum()) for p in vae.parameters())
            self.classifier = _classifier(*sizes, self.hidden, f"classifier {seed!r}")
        if _sizes(self.classifier) != sizes:
            raise InputError("M2: was prepared for another VAE; make a new M2() for each.")
        self.classifier.to(vae.device, vae.dtype)

    def loss_of(self, vae: LatentVariableModel, batch: Batch) -> Loss:
        """Returns minus the objective; see `Loss`.

        Raises:
            InputError: If a row of the context is neither one-hot nor nan.
        """
        if self.classifier is None:
            self.check(vae)
        known, label = _labels(batch)
        log_q = self._log_q(vae, batch)
        bounds = self._bounds(vae, batch, ~known.unsqueeze(-1) | label.bool())
        unlabelled = (log_q.exp() * (bounds - log_q)).sum(-1)
        value = batch.mean(torch.where(known, (label * bounds).sum(-1), unlabelled))
        classified = batch.mean((label * log_q).sum(-1))
        objective = value + self.alpha * classified + vae.log_parameter_prior_per_datum()
        return Loss(-objective, value.detach())

    def _bounds(self, vae: LatentVariableModel, batch: Batch, possible: Tensor) -> Tensor:
        """L(x, y) of each datum for each possible label, 0 for the others, shape ``(B, C)``."""
        labels = vae.context_features
        every = torch.eye(labels, dtype=vae.dtype, device=vae.device).repeat(batch.size, 1)
        repeated = batch._replace(context=None, weight=None).map(lambda field: field.repeat_interleave(labels, 0))
        elbo = vae.log_weights_of(repeated._replace(context=every), self.num_particles).mean(0)
        return torch.where(possible, elbo.reshape(batch.size, labels) - math.log(labels), 0.0)

    def _log_q(self, vae: LatentVariableModel, batch: Batch) -> Tensor:
        """log q(y|x), shape ``(B, C)``."""
        if self.classifier is None:
            raise InputError("M2: has no classifier yet; train it, or call check(vae).")
        logits: Tensor = self.classifier(cast(VAE, vae).posterior_input(batch._replace(context=None))).logits
        return logits

    @torch.no_grad()
    def classify(self, vae: LatentVariableModel, data: DataLike) -> Tensor:
        """Returns q(y|x), shape ``(N, C)``, computed in evaluation mode.

        Arguments:
            vae: VAE that this algorithm has trained.
            data: Shape ``(N, *event_shape)``, in any form that `Batch.of` takes. Their context is ignored.

        Raises:
            InputError: Before training, and for data of another shape.
        """
        batch = batch_for(cast(VAE, vae), data, "M2").to(vae.device, vae.dtype)
        anything = batch.x.new_zeros(len(batch.x), vae.context_features)
        with evaluating(vae), evaluating(self):
            return self._log_q(vae, vae.check(batch._replace(context=anything))).exp()

    def scores(self, vae: LatentVariableModel, data: Batch) -> dict[str, float]:
        """Returns ``accuracy``: the share of the data whose label has the largest q(y|x)."""
        if data.context is None:
            return {}
        right = self.classify(vae, data).argmax(-1).cpu() == data.context.argmax(-1).cpu()
        return {"accuracy": float(right.double().mean())}

    def remark(self) -> str:
        return (
            "its bound in training is of log p(x, y) for known labels y, and of log p(x) for unknown ones; the numbers "
            "shown are of log p(x|y)"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        first, last = (f"{prefix}classifier.{layer}.weight" for layer in ("given.0" if self.hidden else "head", "head"))
        if self.classifier is None and first in state_dict and last in state_dict:
            sizes = state_dict[first].shape[-1], len(state_dict[last])
            self.classifier = _classifier(*sizes, self.hidden).to(state_dict[last])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __repr__(self) -> str:
        return f"M2({self.extra_repr()})"  # without the classifier's layers


def _classifier(cells: int, labels: int, hidden: Sequence[int], stream: str = "classifier") -> Conditional:
    with isolated(0, stream):
        return Conditional(dist.OneHotCategorical, (labels,), given=mlp(cells, *hidden))


def _sizes(classifier: Conditional) -> tuple[int, int]:
    """Sizes of the classifier's input and output."""
    weight = next(p for p in classifier.parameters() if p.dim() > 1)
    return weight.shape[-1], classifier.event_shape.numel()


def _labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """Whether each label is known, shape ``(B,)``; the labels, 0 for unknown ones, shape ``(B, C)``."""
    context = batch.context
    if context is None:
        raise InputError("M2: the batch has no context; give one-hot labels, with a row of nan for each unknown label.")
    unknown = context.isnan().all(-1)
    one_hot = ((context == 0) | (context == 1)).all(-1) & (context.sum(-1) == 1)
    wrong = ~(unknown | one_hot)
    if is_validation_enabled() and bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InputError(
            f"M2: the context of row {row} (from 0) of the batch is {context[row].tolist()}; expected a one-hot label, "
            "or a row of nan for an unknown label."
        )
    return ~unknown, torch.where(unknown.unsqueeze(-1), torch.zeros_like(context), context)
