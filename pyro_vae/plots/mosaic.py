"""Rows of images as one array, with transparent gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.errors import InputError

# Numbers of channels of grey images, colour images, and those with transparency.
_CHANNELS = (1, 3, 4)


class Mosaic(NamedTuple):
    """Images side by side.

    Attributes:
        array: Grey levels, ``(height, width)``, nan in the gaps; or colours, ``(height, width, 4)``, transparent there.
        across: Horizontal position of each column's centre, in pixels.
        down: Vertical position of each row's centre.
    """

    array: NDArray[np.float64]
    across: NDArray[np.float64]
    down: NDArray[np.float64]


def images_of(caller: str, x: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Returns data as images, shape ``(rows, columns, H, W)`` for grey ones, ``(rows, columns, H, W, 3 or 4)`` else.

    Arguments:
        caller: Name of the calling function, for errors.
        x: Shape ``(rows, columns, *event_shape)``.
        image_shape: ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)`` with 1, 3 or 4 channels.

    Raises:
        InputError: If it is no such shape, or x has another number of cells.
    """
    cells = x[0, 0].numel()
    shape = tuple(image_shape)
    first = len(shape) == 3 and shape[0] in _CHANNELS
    if (len(shape) != 2 and not first and (len(shape) != 3 or shape[-1] not in _CHANNELS)) or cells != np.prod(shape):
        raise InputError(
            f"{caller}: `image_shape` is (H, W), (C, H, W) or (H, W, C) with 1, 3 or 4 channels and {cells} cells in "
            f"all; got {shape}."
        )
    images = x.double().cpu().reshape(*x.shape[:2], *shape)
    if len(shape) == 2:
        return images
    images = images.movedim(2, -1) if first else images
    return images.squeeze(-1) if images.shape[-1] == 1 else images


def mosaic_of(images: Tensor, limits: tuple[float, float]) -> Mosaic:
    """Returns images, as `images_of` returns them, side by side.

    Arguments:
        images: The images.
        limits: Values that are black and white; for colours, no and full intensity.
    """
    rows, columns, height, width = images.shape[:4]
    gap = max(1, min(height, width) // 14)
    tall, wide = height + gap, width + gap
    if images.dim() == 5:
        images = ((images - limits[0]) / (limits[1] - limits[0])).clamp(0, 1)
        opaque = torch.ones(*images.shape[:-1], 4 - images.shape[-1], dtype=images.dtype)
        images = torch.cat([images, opaque], dim=-1)
    array = np.full((rows * tall - gap, columns * wide - gap, *images.shape[4:]), 0.0 if images.dim() == 5 else np.nan)
    for row in range(rows):
        for column in range(columns):
            top, left = row * tall, column * wide
            array[top : top + height, left : left + width] = images[row, column].numpy()
    across, down = (np.arange(n, dtype=np.float64) for n in (columns, rows))
    return Mosaic(array, across * wide + (width - 1) / 2, down * tall + (height - 1) / 2)
