r"""What surrounds a call and changes what it does: Pyro's handlers, and settings of the process."""

from __future__ import annotations

import functools
from collections.abc import Hashable

import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.block_messenger import BlockMessenger, _block_fn
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch._C import _len_torch_function_stack
from torch.distributions import Distribution

from pyro_vae.engine.errors import CaptureError


def process() -> Hashable:
    """Returns the settings of the process under which programs differ."""
    return (
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        torch.get_default_dtype(),
        torch.get_default_device() if _len_torch_function_stack() else None,  # it is slow
        is_validation_enabled(),
        bool(Distribution._validate_args),
    )


def refuse_surroundings(call: str) -> None:
    """Raises a `CaptureError` if a call is surrounded by what a captured program would not follow.

    Arguments:
        call: ``"step"`` or ``"evaluate_loss"``.
    """
    for handler in reversed(_PYRO_STACK):
        if _hides_all(handler):  # and all handlers further out
            break
        raise CaptureError(
            f"CompiledSVI: the call of `{call}` is within Pyro's handler `{type(handler).__name__}`, which is not "
            "captured; put the handler around model and guide when you make the CompiledSVI, or use compile=False."
        )
    if call == "step" and not torch.is_grad_enabled():
        raise CaptureError(
            "CompiledSVI: the step is within torch.no_grad or torch.inference_mode, where Pyro's step trains nothing; "
            "take it outside."
        )


def _hides_all(handler: Messenger) -> bool:
    """Returns whether a handler hides all sites from those around it, as ``poutine.block()`` does."""
    hide = handler.hide_fn if isinstance(handler, BlockMessenger) else None
    if not isinstance(hide, functools.partial) or hide.func is not _block_fn:
        return False
    *names, hides = hide.args
    return bool(hides) and not any(names)
