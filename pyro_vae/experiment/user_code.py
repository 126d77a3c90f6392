r"""Code of the user that an experiment file names: the permission to run it, its import, and its errors."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from pyro_vae.errors import InputError, nearest

_CODE_ALLOWED: ContextVar[bool] = ContextVar("pyro_vae_code_allowed", default=False)


@contextmanager
def code_allowed(allowed: bool = True) -> Iterator[None]:
    """A block in which experiment files may name code, such as ``module: my_package.nets.Encoder``.

    The permission is needed when a file is validated; a validated experiment can be built anywhere.

    Arguments:
        allowed: Whether to allow it; False keeps the permission of the outer block.

    Example:
        >>> from pyro_vae.experiment.network import NetworkSpec
        >>> with code_allowed():
        ...     spec = NetworkSpec(module="torch.nn.Linear", arguments={"out_features": 30})
        >>> spec.build_encoder(64, None).out_features
        30
    """
    token = _CODE_ALLOWED.set(allowed or _CODE_ALLOWED.get())
    try:
        yield
    finally:
        _CODE_ALLOWED.reset(token)


def check_allowed(what: str) -> None:
    """Raises an `InputError` if experiment files may not name code.

    Arguments:
        what: What names it, such as ``module: my_package.nets.Encoder``.
    """
    if not _CODE_ALLOWED.get():
        raise InputError(
            f"`{what}` imports and runs code, which an experiment file may do only if it is allowed: pass "
            "--allow-code on the console, or allow_code=True in Python, if you trust the file and that code."
        )


def imported(name: str) -> ModuleType:
    """Returns a module of the user.

    Raises:
        InputError: If it is not found, needs a module that is not found, or raises an error.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing != name and not name.startswith(f"{missing}."):
            raise InputError(f"`{name}` cannot be imported: it needs `{missing}`, which is not installed.") from error
        near = nearest(missing, _siblings(missing))
        raise InputError(
            f"no module `{missing}`; " + (f"did you mean `{near}`? " if near else "") + "Install its package, or put "
            "the folder that holds it on PYTHONPATH."
        ) from error
    except Exception as error:
        raise InputError(f"`{name}` cannot be imported: {reason_of(error)}") from error


def _siblings(name: str) -> list[str]:
    """Returns the modules in the same package as a missing one; without a package, all but the standard library's."""
    parent = name.rpartition(".")[0]
    folders = getattr(importlib.import_module(parent), "__path__", []) if parent else None
    prefix = f"{parent}." if parent else ""
    found = [prefix + module.name for module in pkgutil.iter_modules(folders)]
    return [module for module in found if module not in sys.stdlib_module_names]


def reason_of(error: Exception) -> str:
    """Returns an error of the user's code as one sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(".") + "."
