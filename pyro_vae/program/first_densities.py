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


def check_parameters(program: LatentVariableModel) -> tuple[set[str], set[str]]:
    """Returns the names of the parameters on which log p(x, z) and log q(z|x) depend.

    Raises:
        InputError: If the densities depend on a trainable tensor that is no parameter of the program.
    """
    batch = program.probe_batch()
    with evaluating(program), isolated(0), torch.enable_grad():
        q = program.posterior_given(batch)
        z = q.rsample() if q.has_rsample else q.sample()
        of_guide = [*_leaves(z), *_leaves(q.log_prob(z.detach().clone()))]
        of_model = _leaves(program.log_joint_of(z.detach(), batch))
    own = {id(parameter): name for name, parameter in program.named_parameters()}
    for leaf in [*of_guide, *of_model]:
        if id(leaf) not in own:
            raise InputError(
                f"Program: the densities depend on a trainable tensor of shape {tuple(leaf.shape)} that belongs to no "
                "module which model or guide call, and to no pyro.param statement; register its module by pyro.module, "
                "or make it a pyro.param."
            )
    first, second = ({own[id(leaf)] for leaf in leaves} for leaves in (of_model, of_guide))
    return first, second


def _leaves(value: Tensor) -> list[Tensor]:
    """The leaves of a value's graph."""
    found, seen, stack = [], set(), [value.grad_fn]
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
