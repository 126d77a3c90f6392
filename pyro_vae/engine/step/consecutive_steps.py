r"""Consecutive steps of a program as one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_vae.engine.compilation.backend import Executable
from pyro_vae.engine.compilation.cuda_graph import Replayed
from pyro_vae.engine.step.step import Step

# Largest number of recorded lengths: whole stretches, and the remainders of epochs.
_LENGTHS = 4

Record = Callable[[Executable, Sequence[Tensor], range], Executable]


class Stretch:
    """Consecutive steps of one program: on a CUDA device one CUDA graph, launched at once.

    Every step has its own inputs, noise and learning rates. Parameters, buffers and the optimizer's state change in
    place from step to step, as if the steps were taken one by one.

    Arguments:
        step: The compiled step.
        record: Function that records a program for repeated runs, such as `Replayed`.
    """

    def __init__(self, step: Step, record: Record = Replayed) -> None:
        self.step, self._record = step, record
        self._recorded: dict[int, Executable] = {}
        self._rates: dict[int, Tensor] = {}
        self._known: dict[int, list[list[float]]] = {}
        self._addresses: list[int] = []

    def has_room(self, n: int) -> bool:
        """Returns whether a stretch of n steps is recorded or may still be recorded."""
        return n in self._recorded or len(self._recorded) < _LENGTHS

    @torch.no_grad()
    def take(
        self, steps: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]], rates: Sequence[Sequence[float]]
    ) -> list[Sequence[Tensor]]:
        """Takes the steps; returns for each the tensors of the function's value.

        Arguments:
            steps: Inputs and noise of each step.
            rates: Learning rates of the optimizer's groups at each step.
        """
        n, step = len(steps), self.step
        step.follow()
        addresses = [tensor.data_ptr() for tensor in step.fixed]
        if addresses != self._addresses:  # old recordings write to the old addresses
            self._recorded, self._addresses = {}, addresses
        given = [tensor for inputs, noise in steps for tensor in (*inputs, *noise)]
        arguments = [*step.fixed, self._rates_of(n, rates), *step.all_constants, *given]
        if n not in self._recorded:
            own = range(len(arguments) - len(given), len(arguments))
            self._recorded[n] = self._record(lambda flat: self._several(n, flat), arguments, own)
        flat = self._recorded[n](arguments)
        step.ledger.write_rates(rates[-1])
        each = len(flat) // n
        return [flat[i * each : (i + 1) * each] for i in range(n)]

    def _rates_of(self, n: int, rates: Sequence[Sequence[float]]) -> Tensor:
        """Returns the rates as a tensor of shape ``(n, groups)`` with a fixed address; copies only changed rates."""
        wanted = [list(own) for own in rates]
        if n not in self._rates:
            device = self.step.ledger.failed.device
            self._rates[n] = torch.zeros(n, len(wanted[0]), dtype=torch.float64, device=device)
            self._known[n] = [[0.0] * len(wanted[0]) for _ in wanted]
        if wanted != self._known[n]:
            for i, own in enumerate(wanted):
                for group, rate in enumerate(own):
                    if rate != self._known[n][i][group]:
                        self._rates[n][i, group].fill_(rate)
            self._known[n] = wanted
        return self._rates[n]

    def _several(self, n: int, flat: Sequence[Tensor]) -> list[Tensor]:
        """Runs n steps from their flat arguments; returns their flat results."""
        first, last = len(self.step.fixed), len(self.step.fixed) + 1 + len(self.step.all_constants)
        fixed, rates, constants, given = flat[:first], flat[first], flat[first + 1 : last], flat[last:]
        each = len(given) // n
        results: list[Tensor] = []
        for i in range(n):
            for group, rate in enumerate(self.step.ledger.rates):
                rate.copy_(rates[i, group])
            own = given[i * each : (i + 1) * each]
            results.extend(self.step.executable([*fixed, *own, *constants]))
        return results
