r"""The first densities of a program: its parameters are known, and particles run at once."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.runtime.modes import evaluating
from pyro_vae.runtime.random_streams import isolated
from pyro_vae.vae.latent_variable_model import LatentVariableModel

# Two ways to compute a density differ by rounding alone: by this share of its size.
_TOLERANCE = 1e-3


def check_parameters(program: LatentVariableModel) -> None:
    """Raises an `InputError` if the densities depend on a trainable tensor that is no parameter of the program."""
    batch = program.probe_batch()
    with evaluating(program), isolated(0), torch.enable_grad():
        q = program.posterior_given(batch)
        z = q.rsample() if q.has_rsample else q.sample()
        total = program.log_joint_of(z, batch).sum() + q.log_prob(z.detach().clone()).sum()
    own = {id(parameter) for parameter in program.parameters()}
    for leaf in _leaves(total):
        if id(leaf) not in own:
            raise InputError(
                f"Program: the densities depend on a trainable tensor of shape {tuple(leaf.shape)} that belongs to no "
                "module which model or guide call, and to no pyro.param statement; register its module by pyro.module, "
                "or make it a pyro.param."
            )


def _leaves(total: Tensor) -> list[Tensor]:
    """The leaves of a value's graph."""
    found, seen, stack = [], set(), [total.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack.extend(parent for parent, _ in node.next_functions)
    return found


def vectorizes(program: LatentVariableModel) -> bool:
    """Returns whether two particles that run at once have the densities that they have one after the other.

    If not, it warns.
    """
    batch = program.probe_batch()
    with torch.no_grad(), evaluating(program), isolated(0):
        try:
            q = program.posterior_given(batch)
            z = q.sample((2,))
            at_once = [q.log_prob(z), program.log_joint_of(z, batch)]
            rows = [[q.log_prob(each.clone()), program.log_joint_of(each, batch)] for each in z]
            one_by_one = [torch.stack(column) for column in zip(*rows, strict=True)]
            pairs = zip(at_once, one_by_one, strict=True)
            if all(torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE) for a, b in pairs):
                return True
            reason = "their densities differ from those of one particle"
        except (ValueError, RuntimeError, IndexError, TypeError, AssertionError) as error:
            reason = " ".join(str(error).split())
    warnings.warn(
        f"Program: several particles do not run at once ({reason}); they run one after the other, which is slower. "
        "Write model and guide for tensors with more batch dimensions on the left, as Pyro's vectorized plates need.",
        stacklevel=4,
    )
    return False
