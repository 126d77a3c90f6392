r"""Names in Pyro's param store that belong to one instance."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from typing import Any

import pyro
from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.vae.conditional import Conditional
from pyro_vae.vae.vamp_prior import VampPrior

_instances = itertools.count()

# Modules that hold parameters of distributions; other modules hold the parameters of networks.
_DECLARATIONS = (Conditional, VampPrior)


class Registered(nn.Module):
    """A module with a posterior; its parameters enter Pyro's param store under a name that is unique to the instance.

    A deep copy and an unpickled instance get a new name. The entries are removed when the instance is deleted.
    """

    prior: nn.Module
    likelihood: nn.Module
    posterior: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self._identify()

    def _identify(self) -> None:
        self._name = f"vae-{next(_instances)}"
        finalizer = weakref.finalize(self, _forget, self._name)
        finalizer.atexit = False

    def __getstate__(self) -> dict[str, Any]:
        for parameter in self.parameters():
            parameter.__dict__.pop("unconstrained", None)  # Pyro's weak reference, which cannot be pickled
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:  # copies and unpickled instances come through here
        super().__setstate__(state)
        self._identify()

    @property
    def theta(self) -> dict[str, nn.Parameter]:
        """The generative parameters by name: those of prior and likelihood that the posterior does not have."""
        inference = {id(parameter) for parameter in self.posterior.parameters()}
        return {name: p for name, p in self.named_parameters() if id(p) not in inference}

    @property
    def phi(self) -> dict[str, nn.Parameter]:
        """The inference parameters by name: the posterior's."""
        return {f"posterior.{name}": p for name, p in self.posterior.named_parameters()}

    @property
    def shared(self) -> list[tuple[str, str]]:
        """Parameters that the prior or the likelihood has in common with the posterior."""
        inference = {id(parameter) for parameter in self.posterior.parameters()}
        parts = [("prior", self.prior), ("likelihood", self.likelihood)]
        return [(part, name) for part, module in parts for name, p in module.named_parameters() if id(p) in inference]

    @property
    def free(self) -> frozenset[str]:
        """Names of the parameters that are in no network: `Learned` ones, and the pseudo-inputs of a `VampPrior`."""
        declared = ((name, module) for name, module in self.named_modules() if isinstance(module, _DECLARATIONS))
        return frozenset(
            f"{name}.{own}" for name, module in declared for own, _ in module.named_parameters(recurse=False)
        )

    def _register(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Enters parameters, so that Pyro's optimizers find them; repeated calls change nothing."""
        store = pyro.get_param_store()
        for name, parameter in parameters.items():
            if not parameter.requires_grad:
                continue
            if not parameter.is_contiguous():
                raise InputError(
                    f"VAE: the parameter `{name}` is not contiguous, so Pyro would train a copy of it; "
                    "replace it by nn.Parameter(parameter.detach().contiguous())."
                )
            entry = f"{self._name}.{name}"
            if entry in store and store[entry] is not parameter:  # assigned anew since it was registered
                del store[entry]
            pyro.param(entry, parameter)


def _forget(name: str) -> None:
    store = pyro.get_param_store()
    for entry in [entry for entry in store.keys() if entry.startswith(name + ".")]:  # noqa: SIM118
        del store[entry]
