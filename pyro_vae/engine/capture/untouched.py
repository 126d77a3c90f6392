r"""A trial run of a program without side effects."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from torch import nn

from pyro_vae.engine.errors import CaptureError

_SEED = 0x5EED_0F_CA97
_TABLES = ("_parameters", "_buffers", "_modules")


@contextmanager
def untouched(program: nn.Module, devices: list[torch.device]) -> Iterator[None]:
    """A block without validation, at whose end the side effects of a program are undone.

    Restored are the random states of torch, NumPy and Python, the names in Pyro's param store, and the attributes of
    modules. In-place changes of an attribute's value (a list that grows) stay.

    Arguments:
        program: The program with all its modules.
        devices: CUDA devices on which it may draw.

    Raises:
        CaptureError: If the program draws random numbers of Python or NumPy.
    """
    store = pyro.get_param_store()
    names, modules = set(store.keys()), [(module, _attributes(module)) for module in program.modules()]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered NaN")
        try:
            # A sentinel seed: a program that reseeds is detected.
            torch.default_generator.manual_seed(_SEED)
            yield
            if random.getstate() != python_state or not _same(np.random.get_state(), numpy_state):  # noqa: NPY002
                raise CaptureError(
                    "capture: the program draws by Python's or NumPy's random numbers, which would be constants of the "
                    "captured program; draw by torch, or pass the numbers as tensors."
                )
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
            for name in set(store.keys()) - names:
                del store[name]
            for module, attributes in modules:
                _restore(module, *attributes)


def _same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _attributes(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    return dict(vars(module)), {table: dict(vars(module)[table]) for table in _TABLES}


def _restore(module: nn.Module, attributes: dict[str, Any], tables: dict[str, dict[str, Any]]) -> None:
    own = vars(module)
    for name in own.keys() - attributes.keys():
        del own[name]
    own.update(attributes)
    for name, table in tables.items():
        own[name].clear()
        own[name].update(table)
