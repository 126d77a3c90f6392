r"""What an encoder reads of a datum: the observed values, the masks, and the rest of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.program import running
from pyro_vae.program.model_runs import mask_of
from pyro_vae.program.sites import Layout


def rows_of(value: Tensor, events: int, layout: Layout) -> Tensor:
    """Returns a site's value datum by datum, shape ``(*extra, B, n)``.

    Arguments:
        value: Shape ``(*extra, *plates, *event)``; extra dimensions, as of particles, lie before all plates.
        events: Number of event dimensions.
        layout: The plates.
    """
    missing = layout.nesting + events - value.dim()
    full = value.reshape((1,) * max(missing, 0) + value.shape)
    extra = full.dim() - layout.nesting - events
    moved = full.movedim(extra + layout.nesting + layout.data, extra)
    return moved.flatten(extra + 1) if moved.dim() > extra + 1 else moved.unsqueeze(-1)


class EncoderInput(nn.Module):
    r"""The input of an encoder, shape ``(B, D)``: all observed values of a datum, masks, and the rest of the batch.

    The order is: observed values, in the order of the model; the other tensors of the batch; then, for each observed
    site with a mask, the mask as 0 and 1. Hidden cells are 0, whatever they hold.

    Arguments:
        trace: A run of the model on the example.
        others: The other tensors of the example, by place: those that change neither observed values nor masks.
        layout: The plates.
        like: Tensor of the input's type.
        standardised: Whether to subtract the mean of each column over the example, and to divide by the standard
            deviation; hidden cells are then at the mean.

    Attributes:
        size: D.
        said: What the columns are, in words.

    Raises:
        InputError: For a value that is not finite, in a cell that is not hidden.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self, trace: Trace, others: Mapping[int, Tensor], layout: Layout, like: Tensor, standardised: bool
    ) -> None:
        super().__init__()
        self.layout, self.places = layout, tuple(others)
        self.register_buffer("loc", like.new_zeros(()))
        names = [*running.observed(trace), *(f"tensor {place} of the batch" for place in self.places)]
        parts, masks = self._parts(trace, list(others.values()))
        for name, (value, seen) in zip(names, parts, strict=True):
            if not bool(value[seen].isfinite().all()):
                raise InputError(
                    f"auto_guide: `{name}` has values that are not finite; hide these cells by a mask, such as "
                    "poutine.mask."
                )
        value, seen = (torch.cat(column, dim=-1) for column in zip(*parts, strict=True))
        loc, scale = _moments(value, seen) if standardised else (value.new_zeros(()), value.new_ones(()))
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        sizes = [part.shape[-1] for part, _ in parts]
        self.size = sum(sizes) + sum(mask.shape[-1] for mask in masks)
        said = [f"{size} of {name}" for name, size in zip(names, sizes, strict=True) if size]
        self.said = ", ".join([*said, *(f"{mask.shape[-1]} of a mask" for mask in masks)])

    def forward(self, trace: Trace, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the input.

        Arguments:
            trace: A run of the model on the batch.
            tensors: The tensors of the batch, in order.
        """
        parts, masks = self._parts(trace, [tensors[place] for place in self.places])
        value, seen = (torch.cat(column, dim=-1) for column in zip(*parts, strict=True))
        cells = (value - self.loc) / self.scale
        if not masks:
            return cells
        return torch.cat([torch.where(seen, cells, 0), *(mask.to(cells) for mask in masks)], dim=-1)

    def _parts(self, trace: Trace, others: Sequence[Tensor]) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Columns of values with those of whether they are seen, one pair for each source; and the masks' columns."""
        parts, masks = [], []
        for node in running.observed(trace).values():
            value, mask = self._rows(node, node["value"]).to(self.loc), mask_of(node)
            if isinstance(mask, Tensor):
                masks.append(self._rows(node, mask, of_events=False))
                parts.append((value, self._rows(node, mask)))
            else:
                value = torch.zeros_like(value) if mask is False else value
                parts.append((value, torch.ones_like(value, dtype=torch.bool)))
        for tensor in others:
            value = tensor.reshape(len(tensor), -1).to(self.loc)
            parts.append((value, torch.ones_like(value, dtype=torch.bool)))
        return parts, masks

    def _rows(self, node: Any, value: Tensor, of_events: bool = True) -> Tensor:
        """A value or mask of a site datum by datum; an event dimension of size 1 is one column, or as many as cells."""
        batch, event = node["fn"].batch_shape, node["fn"].event_shape
        own = value.shape[value.dim() - len(event) :]
        shape = torch.broadcast_shapes(value.shape, batch + (event if of_events else own))
        return rows_of(value.expand(shape), len(event), self.layout)

    def extra_repr(self) -> str:
        return self.said


def _moments(value: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column over its cells that are seen; a constant has its size as scale."""
    count = seen.sum(0).clamp(min=1)
    loc = torch.where(seen, value, 0).sum(0) / count
    scale = (torch.where(seen, value - loc, 0).square().sum(0) / count).sqrt()
    return loc, torch.where(scale > 1e-6 * loc.abs(), scale, loc.abs().clamp(min=1))
