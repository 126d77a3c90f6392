r"""The user's own Pyro program in an experiment: ``program: my_module:make``.

``make(data)`` is called with the training data and returns a `Program`. A file names the function, which runs its code,
so it must be allowed explicitly. In Python the function itself, or a `Program`, takes the place of its name.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, PlainSerializer, WithJsonSchema
from torch import Tensor

from pyro_vae.batch import Batch
from pyro_vae.datasets.data import Data
from pyro_vae.errors import InputError, near_match
from pyro_vae.experiment.user_code import check_allowed, imported, reason_of
from pyro_vae.program.program import Program

_NAME = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_EXPECTED = "a function of the training data that returns a Program, as my_module:make"


def check_program(value: Any) -> Any:
    """Returns what an experiment declares as its ``program``, unchanged; imports nothing.

    Raises:
        InputError: If it is neither the name of a function, nor a function, nor a `Program`, or code is not allowed.
    """
    if isinstance(value, str):
        if value.startswith("<"):
            raise InputError(
                f"stands for a program that was given in Python, `{value}`; in pyro_vae.load(..., program=...) give "
                "the function or Program again"
            )
        module, colon, name = value.partition(":")
        if module.endswith(".py"):
            raise InputError(
                f"names {_EXPECTED}; got a file, `{value}`: write its module, `{Path(module).stem}:{name}`"
            )
        if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
            raise InputError(f"names {_EXPECTED}; got `{value}`")
        check_allowed(value)
    elif isinstance(value, type) or not (value is None or callable(value) or isinstance(value, Program)):
        raise InputError(f"is {_EXPECTED}; in Python also the function itself, or a Program; got `{value!r}`")
    return value


def program_name(program: Any) -> str:
    """Returns the name of a program as a file has it; in brackets, what stands for one that has no such name.

    Arguments:
        program: A name, a function, or a `Program`.
    """
    if isinstance(program, str):
        return program
    module, name = getattr(program, "__module__", None), getattr(program, "__qualname__", None)
    if isinstance(program, Program) or module is None or name is None or "<" in name:
        return f"<{type(program).__name__} in Python>"
    return f"{module}:{name}"


ProgramField = Annotated[
    Any,
    AfterValidator(check_program),
    PlainSerializer(lambda value: None if value is None else program_name(value), when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": f"^{_NAME}:{_NAME}$"}, {"type": "null"}]}),
]


def training_rows(data: Data) -> Batch:
    """Returns the training data as the first step sees them: binarised by a draw if the binarisation is dynamic."""
    rows = data.batch("train")
    return rows._replace(x=data.transform(rows.x, torch.Generator().manual_seed(0)))


def build_program(program: Any, rows: Batch, scaling: str = "none") -> Program:
    """Returns a new program, with parameters drawn from torch's global random stream.

    The program is a copy of what the function returns, so that runs never train the same parameters, even if the
    function returns one program, or programs of the same modules, at each call.

    Arguments:
        program: A name, a function, or a `Program`.
        rows: Training data, which the function is given as a tensor, or as the batch if it has a context, a mask or
            an offset.
        scaling: How the columns of these data were scaled, for errors.

    Raises:
        InputError: If the function cannot be found, raises an error, or returns something else.
    """
    if isinstance(program, Program):
        return copy.deepcopy(program)
    name, make = program_name(program), _found(program) if isinstance(program, str) else program
    given: Tensor | Batch = rows.x if rows.x is not None and all(field is None for field in rows[1:]) else rows
    try:
        made = make(given)
    except InputError as error:
        raise InputError(f"program: `{name}`: {error}") from error
    except Exception as error:
        raise InputError(
            f"program: `{name}` fails on the training data, {_described(given)}{_line(make, error)}: "
            f"{reason_of(error)}{_about(scaling)}"
        ) from error
    if not isinstance(made, Program):
        got = "nothing" if made is None else f"a `{type(made).__name__}`"
        raise InputError(
            f"program: `{name}` returns {got}; end it with return Program(model, guide, example=data[:100])."
        )
    return copy.deepcopy(made)


@contextmanager
def warned_once() -> Iterator[None]:
    """A block that makes a program again, which repeats no warning about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s)Program: ")
        yield


def code_record(program: Any) -> dict[str, str]:
    """Returns the name of the file that holds the function, with its sha256; empty if there is no such file.

    Arguments:
        program: A name, a function, or a `Program`.
    """
    make = _found(program) if isinstance(program, str) else program
    try:
        path = Path(inspect.getsourcefile(make) or "")
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    except (TypeError, OSError):
        return {}


def _found(name: str) -> Callable[[Any], Any]:
    """Returns the function with a name such as ``my_module:make``."""
    module_name, _, path = name.partition(":")
    try:
        found: Any = imported(module_name)
    except InputError as error:
        raise InputError(f"program: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            where = module_name if isinstance(found, ModuleType) else type(found).__name__
            functions = [key for key, value in vars(found).items() if _is_offered(found, value)]
            offer = near_match(part, functions) if functions else "it has no function of its own."
            raise InputError(f"program: `{where}` has no `{part}`; {offer}")
        found = getattr(found, part)
    if isinstance(found, Program):
        return lambda _: found
    if isinstance(found, type) or not callable(found):
        what = f"the class `{found.__name__}`" if isinstance(found, type) else f"`{found!r}`"
        raise InputError(f"program: `{name}` is {what}; name {_EXPECTED}.")
    made: Callable[[Any], Any] = found
    return made


def _is_offered(module: Any, value: Any) -> bool:
    return inspect.isfunction(value) and value.__module__ == getattr(module, "__name__", None)


def _described(given: Tensor | Batch) -> str:
    if isinstance(given, Tensor):
        return f"a tensor of shape {tuple(given.shape)}"
    fields = (f"{name} {tuple(f.shape)}" for name, f in zip(given._fields, given, strict=True) if f is not None)
    return f"a Batch of {', '.join(fields)}"


def _line(make: Any, error: Exception) -> str:
    """The last line of the file of ``make`` that an error passed through."""
    file = getattr(getattr(make, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(str(file)).name}, line {lines[-1]})" if lines else ""


def _about(scaling: str) -> str:
    """How the data differ from those in the file, which often is why a program fails on them."""
    if scaling == "none":
        return ""
    how = "scaled to [0, 1]" if scaling == "unit" else "standardised"
    return f" The data are {how}; `data: {{name: ..., scaling: none}}` leaves them as they are in the file."
