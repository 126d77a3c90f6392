r"""All trainable tensors and buffers of a Pyro program as parameters and buffers of one module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pyro_vae.engine.capture.location import caller_outside_torch, current_location, is_pyros
from pyro_vae.engine.capture.refusals import validates
from pyro_vae.engine.errors import CaptureError
from pyro_vae.engine.svi.settings import Settings

_LOSSES = str(Path(str(pyro.__file__)).parent / "infer")


class Observation:
    """A block that records the parameters and modules of the Pyro program that runs in it.

    Attributes:
        sites: Unconstrained values of the parameters with a ``pyro.param`` statement, which Pyro trains, by name.
        used: Unconstrained values of all parameters in the store that some operation reads, by name.
        reached: Ids of the tensors that got a gradient.
        modules: Modules that were called in the block, and their submodules.
        owners: Holder and key of each parameter that its module keeps out of the store (``module_local_params``).
        constant: Ids of the buffers that the block did not change.
        settings: What the program reads from elsewhere than its arguments.

    Arguments:
        programs: The model, the guide and the loss.
    """

    def __init__(self, *programs: Any) -> None:
        self.sites: dict[str, Tensor] = {}
        self.used: dict[str, Tensor] = {}
        self.modules: list[nn.Module] = []
        self._watch, self._programs = _Watch(), programs
        self._called: list[nn.Module] = []
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def reached(self) -> set[int]:
        return self._watch.reached

    def __enter__(self) -> Observation:
        self._stack = ExitStack()
        for program in self._programs:
            self._meet(program)
        hook = register_module_forward_pre_hook(lambda module, _: self._meet(module))
        self._stack.callback(hook.remove)
        self._trace = self._stack.enter_context(poutine.trace(param_only=True))
        self._stack.enter_context(self._watch)
        return self

    def _meet(self, module: Any) -> None:
        """Remembers a module that is called, and the values of its buffers."""
        if isinstance(module, nn.Module):
            self._called.append(module)
            for buffer in module.buffers():
                if id(buffer) not in self._buffers:
                    self._buffers[id(buffer)] = buffer, buffer.detach().clone()

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()
        if exception and exception[0] is not None:
            return
        store = pyro.get_param_store()._params
        self.modules = list({id(part): part for module in self._called for part in module.modules()}.values())
        before = self._buffers.items()
        self.constant = {i for i, (buffer, value) in before if _equal(buffer, value)}
        names = {id(tensor): name for name, tensor in store.items()}
        seen = self._watch.seen
        self.used = {names[i]: tensor for i, tensor in seen.items() if i in names}
        self.sites = {name: site["value"].unconstrained() for name, site in self._trace.trace.nodes.items()}
        self.settings = Settings(*self._programs, *self.modules)
        holders = {id(p): (m._parameters, name) for m in self.modules for name, p in m._parameters.items()}
        local = pyro.settings.get("module_local_params")
        self.owners = {name: holders[id(t)] for name, t in self.sites.items() if local and id(t) in holders}
        self._assigned = [name for name, tensor in self.sites.items() if self.current(name) is not tensor]
        known = names.keys() | {id(tensor) for tensor in self.sites.values()}
        self._foreign = [tensor for i, tensor in seen.items() if i not in known and isinstance(tensor, nn.Parameter)]

    def current(self, name: str) -> Tensor | None:
        """Returns the unconstrained value of a parameter: in the store, or in a module with parameters of its own."""
        if name in self.owners:
            holder, key = self.owners[name]
            return holder.get(key)
        return pyro.get_param_store()._params.get(name)

    @property
    def stale(self) -> bool:
        """Whether tensors in the store were replaced since the observation."""
        seen = {name: t for name, t in (self.used | self.sites).items() if name not in self._assigned}
        return any(self.current(name) is not tensor for name, tensor in seen.items())

    def require_registered(self) -> None:
        """Raises a `CaptureError` for a trainable parameter that the program uses but Pyro does not train."""
        for name in self._assigned:
            raise CaptureError(
                f"CompiledSVI: the program assigns `{name}` in the parameter store as it runs (as a decaying average "
                "baseline does); use a baseline with parameters (`nn_baseline`), or pyro.infer.SVI."
            )
        for tensor in self._foreign:
            name = _name_in(self.modules, tensor)
            raise CaptureError(
                f"CompiledSVI: `{name}`, of shape {tuple(tensor.shape)}, is used but is not in Pyro's parameter store, "
                "so SVI never trains it. Register its module by pyro.module or make it a PyroModule, under a name "
                "that no other module has; or freeze it with requires_grad_(False)."
            )


def _equal(tensor: Tensor, value: Tensor) -> bool:
    return tensor.layout is torch.strided and torch.equal(tensor, value)


def _name_in(modules: Sequence[nn.Module], tensor: Tensor) -> str:
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is tensor:
                return f"{type(module).__name__}.{name}"
    return "a parameter"


class _Watch(TorchFunctionMode):
    """Records which trainable tensors are read by operations, and which of them get a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}
        self.reached: set[int] = set()

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function is Tensor.backward:
            return self._backward(arguments, named)
        if getattr(function, "__name__", "") != "__get__":  # access to an attribute reads no values
            for leaf in pytree.tree_leaves((arguments, named)):
                if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_leaf:
                    self.seen[id(leaf)] = leaf
        return function(*arguments, **named)

    def _backward(self, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
        hooks = [
            tensor.register_post_accumulate_grad_hook(lambda t: self.reached.add(id(t)))
            for tensor in self.seen.values()
        ]
        try:
            return Tensor.backward(*arguments, **named)
        finally:
            for hook in hooks:
                hook.remove()


class StandIns(nn.Module):
    r"""A module whose parameters and buffers replace a program's trainable tensors and buffers.

    Within `run`, the program gets this module's tensor wherever it reads one of the replaced tensors: by
    ``pyro.param``, ``pyro.module``, a ``PyroParam`` or an attribute of a module. So the program becomes a function of
    this module's parameters and buffers; the program's own modules are not changed.

    Arguments:
        tensors: Unconstrained values in the parameter store, by name.
        modules: Modules whose buffers the program uses.
        constant: Ids of buffers that get no stand-in, since the program does not change them.

    Attributes:
        keys: Name of each tensor in this module, by its name in the store.
        held: Holder, name and value of each buffer without stand-in.
        validated: Whether distributions validate within `run`, as they did when this object was made.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], modules: Sequence[nn.Module], constant: Container[int] = ()
    ) -> None:
        super().__init__()
        self.tensors = dict(tensors)
        keys: dict[int, str] = {}  # the store may have one tensor under several names
        self.keys = {name: keys.setdefault(id(tensor), f"p{len(keys)}") for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self._parameters[self.keys[name]] = tensor  # type: ignore[assignment]  # a leaf that is no nn.Parameter
        found = {id(b): (m, name) for m in modules for name, b in m._buffers.items() if b is not None}
        own = [holder for i, holder in found.items() if i not in constant]
        self._holders = {f"b{i}": holder for i, holder in enumerate(own)}
        self.held = [(m._buffers, name, m._buffers[name]) for i, (m, name) in found.items() if i in constant]
        self._originals: dict[str, Tensor | None] = {}
        self.validated = bool(Distribution._validate_args)
        self.refresh()

    def refresh(self) -> None:
        """Updates the references to buffers that were assigned anew."""
        for key, (module, name) in self._holders.items():
            self._originals[key] = self._buffers[key] = module._buffers[name]

    def run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, Any, Tensor]:
        """Runs a function with the stand-ins.

        Returns:
            Sum of all scalars on which the function calls ``backward``, value of the function, and whether the
            parameters and values of all distributions that validate are valid, a boolean scalar.
        """
        swaps: dict[int, Tensor | None] = {id(t): self._parameters[self.keys[n]] for n, t in self.tensors.items()}
        swaps |= {id(self._originals[key]): self._buffers[key] for key in self._holders}
        mode, store = _Swap(swaps), _UnchangedStore()
        try:
            with store, _validation(self.validated), mode:
                value = function(*arguments, **named)
        finally:
            for key, (module, name) in self._holders.items():
                if module._buffers[name] is not self._originals[key]:
                    self._buffers[key], module._buffers[name] = module._buffers[name], self._originals[key]
            assigned = [name for holder, name, buffer in self.held if holder[name] is not buffer]
            for holder, name, buffer in self.held:
                holder[name] = buffer
        if assigned:
            raise CaptureError(f"CompiledSVI: the buffers {assigned} are assigned anew now and then.")
        if any(p is not None and p.grad is not None for p in self._parameters.values()):
            raise _gradients_set("torch.autograd.backward, or an assignment to .grad")
        return mode.surrogate, value, _all_true(mode.checks)


def _all_true(checks: Sequence[Tensor]) -> Tensor:
    """Returns whether all cells of some boolean tensors are true; checks of one shape share a reduction."""
    by_shape: dict[torch.Size, Tensor] = {}
    for check in checks:
        by_shape[check.shape] = by_shape[check.shape] & check if check.shape in by_shape else check
    return functools.reduce(torch.logical_and, (check.all() for check in by_shape.values()), torch.tensor(True))


@contextmanager
def _validation(enabled: bool) -> Iterator[None]:
    """A block in which distributions validate their parameters and values, or do not."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(enabled)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


class _UnchangedStore:
    """A block that restores the parameter store at its end, and raises a `CaptureError` if the store was changed."""

    def __enter__(self) -> None:
        store = pyro.get_param_store()
        self._before = (dict(store._params), dict(store._param_to_name), dict(store._constraints))

    def __exit__(self, kind: Any, *exception: Any) -> None:
        store, before = pyro.get_param_store(), self._before[0]
        changed = [name for name, tensor in store._params.items() if before.get(name) is not tensor]
        changed += [name for name in before if name not in store._params]
        store._params, store._param_to_name, store._constraints = self._before
        if changed and kind is None:
            raise CaptureError(
                f"CompiledSVI: the program creates or assigns {', '.join(f'`{n}`' for n in changed)} in the parameter "
                "store each time it runs (as a decaying average baseline does); its parameters must stay the same."
            )


class _Swap(TorchFunctionMode):
    """Swaps tensors for stand-ins, collects the scalars to differentiate and the checks of distributions.

    Losses stay tensors.
    """

    def __init__(self, swaps: Mapping[int, Tensor | None]) -> None:
        super().__init__()
        self.swaps = swaps
        self.surrogate: Any = None
        self.checks: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        if function in _GRADIENTS and id(arguments[0]) in self.swaps:
            raise _gradients_set(f"the use of .grad at {current_location()}")
        arguments, named = pytree.tree_map_only(Tensor, self._of, (tuple(arguments), named or {}))
        if function is Tensor.backward:
            gradient = arguments[1] if len(arguments) > 1 else named.get("gradient")
            value = arguments[0] if gradient is None else (arguments[0] * gradient).sum()
            self.surrogate = value if self.surrogate is None else self.surrogate + value
            return None
        if validates(function):
            self.checks.append(detach_provenance(arguments[0]).detach().bool())
            return True
        if function in _ADAPTED:
            frame = caller_outside_torch()
            if frame.f_code.co_name == "_standard_stable" and is_pyros(frame):
                return True  # the formula for a stability near 1 holds for all others too
            if str(Path(frame.f_code.co_filename).parent) == _LOSSES:
                if function is Tensor.item:
                    return arguments[0].detach()  # a loss returns a number, but a tensor serves as well
                if frame.f_code.co_name == "compute_expectation":
                    return _enumerated(function, *arguments)
        return function(*arguments, **named)

    def _of(self, tensor: Tensor) -> Tensor:
        other = self.swaps.get(id(tensor))
        return tensor if other is None else other


_GRADIENTS = {Tensor.grad.__get__, Tensor.grad.__set__}  # type: ignore[union-attr]


def _gradients_set(how: str) -> CaptureError:
    return CaptureError(
        f"CompiledSVI: the loss works on the gradients itself, by {how}; use `backward` of the tensor and change the "
        "loss instead of its gradients, or use compile=False."
    )


_ADAPTED = {Tensor.item, Tensor.__bool__, Tensor.masked_select}


def _enumerated(function: Any, tensor: Tensor, *mask: Tensor) -> Any:
    """Adapts Pyro's expectation over enumerated values: values of probability 0 become 0, instead of being dropped."""
    if function is Tensor.__bool__:
        return False  # the answer to "are all probabilities positive?"
    return torch.where(mask[0], tensor, torch.zeros_like(tensor))


def total(surrogate: Any, loss: Any, valid: Tensor, idle: Sequence[Tensor]) -> Any:
    """Returns the scalar to differentiate; it is not finite if the loss is not finite or a distribution not valid.

    Arguments:
        surrogate: Sum of the scalars on which ``backward`` was called.
        loss: Return value of the program.
        valid: Whether all distributions are valid, a boolean scalar.
        idle: Parameters that get a gradient of zero.
    """
    if not isinstance(surrogate, Tensor):
        raise CaptureError("CompiledSVI: the loss depends on no trainable parameter, so there is nothing to step.")
    values = [leaf for leaf in pytree.tree_leaves(loss) if isinstance(leaf, Tensor)]
    nothing = torch.where(valid, 0.0, torch.nan).to(surrogate)
    values = [nothing, *(0.0 * value.detach() for value in values), *(0.0 * p for p in idle)]
    return surrogate + sum(value.sum() for value in values)


def zeros_for(tensors: Sequence[Tensor]) -> None:
    """Sets existing gradients to zero, as Pyro's SVI does after a step."""
    for tensor in tensors:
        if tensor.grad is not None:
            tensor.grad = torch.zeros_like(tensor.grad)
