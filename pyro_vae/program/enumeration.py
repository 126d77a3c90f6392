r"""Discrete sites that are summed out: densities of all other sites, by Pyro's tensor variable elimination."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.ops.contract import contract_to_tensor
from pyro.ops.packed import pack, unpack
from pyro.ops.rings import LogRing
from torch import Tensor

from pyro_vae.program.sites import Layout


def depends(log_prob: Tensor, layout: Layout, particles: int | None) -> bool:
    """Returns whether a log density has a dimension of an enumerated site, which lies before all others."""
    return log_prob.dim() > layout.nesting + (particles is not None)


def log_sum(
    terms: Sequence[tuple[Any, Tensor]], layout: Layout, particles: int | None, size: int, kept: str | None = None
) -> Tensor:
    r"""Returns the log of the sum of a product over all values of the enumerated sites.

    .. math:: \log \sum_y \prod_s p_s(y)

    Arguments:
        terms: Sites of a trace, and their log densities with dimensions of enumerated sites.
        layout: The plates of the program.
        particles: K, or None.
        size: B, the number of data.
        kept: An enumerated site over which there is no sum; its values are a last dimension.

    Returns:
        Shape ``(K, B)`` or ``(B,)``; with ``kept``, ``(K, B, n, C)`` or ``(B, n, C)`` for a site of C values in inner
        plates of n cells in all, up to a constant.

    Reference: Obermeyer, Bingham, Jankowiak, Pradhan, Chiu, Rush and Goodman, "Tensor variable elimination for plated
    factor graphs", 2019.
    """
    symbols: dict[str, int] = {}
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    sums: set[str] = set()
    target: set[str] = set()
    sizes: dict[str, int] = {}
    for node, log_prob in terms:
        names = node["infer"]["_dim_to_symbol"]
        symbols |= {symbol: dim for dim, symbol in names.items()}
        frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
        sizes |= {names[frame.dim]: frame.size for frame in frames}
        tree.setdefault(frozenset(names[frame.dim] for frame in frames), []).append(pack(log_prob, names))
        own = "_enumerate_symbol" in node["infer"]
        if own:
            sums.add(node["infer"]["_enumerate_symbol"])
        wanted = (layout.data, -layout.nesting - 1)
        target |= {names[frame.dim] for frame in frames if frame.dim in wanted or (own and node["name"] == kept)}
    axes = {node["infer"]["_enumerate_symbol"] for node, _ in terms if node["name"] == kept}
    total = contract_to_tensor(tree, sums, frozenset(target), axes, ring=LogRing(dim_to_size=sizes))
    if kept is None:
        return layout.sums(unpack(total, symbols), particles, size)
    return _kept(total, axes.pop(), symbols, layout, particles)


def _kept(total: Tensor, axis: str, symbols: Mapping[str, int], layout: Layout, particles: int | None) -> Tensor:
    """A packed tensor with one enumerated dimension, as ``(K, B, n, C)`` or ``(B, n, C)``."""
    leading = 0 if particles is None else 1
    dims: str = total._pyro_dims  # type: ignore[attr-defined]
    wide = layout.nesting + 1
    full = total.permute(*(dims.index(name) for name in sorted(dims, key=lambda name: (name == axis, symbols[name]))))
    shape = [1] * wide
    for name, count in zip(dims, total.shape, strict=True):
        if name != axis:
            shape[symbols[name]] = count
    values = full.shape[-1] if axis in dims else 1
    whole = full.reshape(*shape, values)
    whole = whole if leading else whole[0]
    moved = whole.movedim(whole.dim() - 1 + layout.data, leading)
    return moved.reshape(*moved.shape[: leading + 1], -1, values)


def conditionals(
    latents: Sequence[tuple[Any, Tensor]],
    enumerated: Sequence[tuple[Any, Tensor]],
    layout: Layout,
    particles: int | None,
    size: int,
) -> dict[str, Tensor]:
    r"""Returns :math:`\log p(z_s | z_{<s})` of latent sites that depend on enumerated ones, by name.

    Arguments:
        latents: The latent sites in the order of the model, and their log densities given the enumerated sites.
        enumerated: The enumerated sites and theirs.
        layout: The plates of the program.
        particles: K, or None.
        size: B.
    """
    found, before = {}, torch.zeros(())
    for i, (node, _) in enumerate(latents):
        joint = log_sum([*enumerated, *latents[: i + 1]], layout, particles, size)
        found[node["name"]] = joint - before.to(joint)
        before = joint
    return found
