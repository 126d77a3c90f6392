r"""Where a parameter of a distribution comes from: a network, the optimizer, or a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform


@dataclass(frozen=True)
class Network:
    r"""A parameter that the network outputs: a slice of the one linear head.

    Attributes:
        shape: Size of the parameter for one element of the event, where the event does not tell it: ``(256,)``
            for the logits of a `Categorical` over 256 levels, ``(D, rank)`` for a low-rank factor.
        transform: From the head's output to the parameter, a transform or a constraint. Default:
            ``transform_to`` of the parameter's own constraint (a positive parameter is the exp of the output).
        offset: Whether the batch's ``offset`` is added to the head's output, before the transform.
    """

    shape: Sequence[int] | None = None
    transform: Transform | Constraint | None = None
    offset: bool = False


@dataclass(frozen=True)
class Learned:
    r"""A free parameter, optimised in unconstrained space.

    Attributes:
        init: Initial value, in the parameter's own (constrained) space. Its shape is the parameter's, broadcast
            over the event: a number is one value shared by all elements. Default: unconstrained zero, one value
            for each element.
        shape: Shape to expand ``init`` to: ``Learned(0.1, shape=(784,))`` has one value for each of 784 elements.
        transform: As in `Network`.
    """

    init: float | Sequence[float] | Tensor | None = None
    shape: Sequence[int] | None = None
    transform: Transform | Constraint | None = None


@dataclass(frozen=True)
class Fixed:
    """A constant: a buffer, or a Python number where the family wants a count.

    Attributes:
        value: A number, a list or a tensor that broadcasts over the event.
    """

    value: float | Sequence[float] | Tensor


Source = Network | Learned | Fixed
