r"""One VAE in training, with all that belongs to its run: algorithm, optimizer, records, last good parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.batch import Batch
from pyro_vae.engine.step.ledger import Ledger
from pyro_vae.errors import InputError, NonFiniteError
from pyro_vae.inference.interface import Inference, Phase
from pyro_vae.runtime.random_streams import Stream
from pyro_vae.training.history import Records
from pyro_vae.training.options import OptimizerFactory
from pyro_vae.training.validation import Watch
from pyro_vae.vae.latent_variable_model import LatentVariableModel


class Member:
    """One VAE in training.

    Arguments:
        index: Its place among the VAEs that are trained together.
        name: How messages call it: empty for one VAE, ``"replicate 3: "`` for one of several.
        vae: The VAE.
        inference: The algorithm.
        optimizer: Makes its optimizer from the trainable parameters.
        watch: Evaluates its validation data.
        stream: Random stream of its draws; None for the global one.

    Attributes:
        optimizer: The optimizer.
        rates: Learning rates of the optimizer's groups, before any schedule.
        both: The VAE and the algorithm as one module.
        phases: Phases of the algorithm, each with the parameters that it moves.
        exempt: Identities of the parameters that the algorithm leaves alone by design.
        ledger: Rates, counters and failure flag that compiled steps use.
        settled: Number of updates in compiled steps whose result was checked.
        records: Bounds, samples and seconds of the steps.
        stopped: Why it stopped; empty while it trains.
        remark: What was not finite, where it diverged.

    Raises:
        InputError: Where the optimizer is none, or where no phase moves a trainable parameter.
    """

    def __init__(
        self,
        index: int,
        name: str,
        vae: LatentVariableModel,
        inference: Inference,
        optimizer: OptimizerFactory,
        watch: Watch,
        stream: Stream | None = None,
    ) -> None:
        self.index, self.name, self.vae, self.inference, self.watch, self.stream = (
            *(index, name, vae, inference),
            *(watch, stream),
        )
        parameters = [p for p in (*vae.parameters(), *inference.parameters()) if p.requires_grad]
        self.optimizer = _checked(optimizer(parameters))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.both = nn.ModuleDict({"vae": vae, "inference": inference})
        self.phases: list[tuple[Phase, dict[str, nn.Parameter]]] = [
            (phase, inference.moved(vae, phase)) for phase in inference.phases
        ]
        left = {**({} if inference.trains_posterior else vae.phi), **({} if inference.trains_prior else _of_prior(vae))}
        self.exempt = {id(parameter) for parameter in left.values()}
        self._require_phases()
        self.kept = {id(parameter): parameter.detach().clone() for parameter in self.both.parameters()}
        self.keep_buffers()
        self.settled, self.records, self.stopped, self.remark = 0, Records(), "", ""

    def open_ledger(self) -> None:
        """Begins the ledger, from the optimizer's present state."""
        moved = [list(parameters.values()) for _, parameters in self.phases]
        self.ledger = Ledger(self.optimizer, moved, self.vae.device, self.kept)

    @property
    def steps(self) -> int:
        """Steps taken and recorded."""
        return len(self.records.seconds)

    @property
    def moving(self) -> int:
        """Number of phases that move a parameter."""
        return sum([bool(parameters) for _, parameters in self.phases])

    def drawing(self) -> AbstractContextManager[None]:
        """A block in which all draws come from the member's own stream."""
        return nullcontext() if self.stream is None else self.stream.drawing()

    def set_rates(self, factor: float | None) -> None:
        """Sets the optimizer's learning rates to the initial ones times a factor; None leaves them as they are."""
        if factor is not None:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor

    # ------------------------------------------------------------------ the last good parameters

    @torch.no_grad()
    def keep(self, moved: Mapping[str, nn.Parameter]) -> None:
        """Keeps the parameters that a phase is about to move, and all buffers, which an algorithm may replace."""
        parameters: list[Tensor] = list(moved.values())
        torch._foreach_copy_([self.kept[id(parameter)] for parameter in parameters], parameters)
        self.keep_buffers()

    def keep_all(self) -> None:
        """Keeps all parameters and buffers as they are now."""
        self.keep(dict(self.both.named_parameters()))

    def keep_buffers(self) -> None:
        """Keeps all buffers as they are now."""
        self.buffers = {name: buffer.clone() for name, buffer in self.both.named_buffers()}

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the last good parameters and buffers in place."""
        for parameter in self.both.parameters():
            parameter.copy_(self.kept[id(parameter)])
        for name, buffer in self.both.named_buffers():
            buffer.copy_(self.buffers[name])

    # ------------------------------------------------------------------ how it stops

    def stop(self, why: str, remark: str = "") -> None:
        """Ends its training; a program that it shares with others changes it no more."""
        self.stopped, self.remark = why, remark
        self.ledger.failed.fill_(True)

    def diverge(self, error: NonFiniteError) -> None:
        """Ends its training at a value that is not finite."""
        self.stop("diverged", self.name + str(error).removeprefix("fit: "))

    def names_a_term(self, batch: Batch) -> bool:
        """Whether a log density is not finite at a minibatch."""
        try:
            with torch.random.fork_rng():
                return _name_term(self.vae, batch) is not None
        except (ValueError, RuntimeError):  # what fails for another reason fails here too
            return False

    def fail(self, batch: Batch, rows: Tensor | None, otherwise: str) -> NoReturn:
        """Names what is not finite, puts the last good parameters in place, and raises.

        Arguments:
            batch: Minibatch of the step that failed.
            rows: Its rows in the data; None where these are unknown.
            otherwise: What is not finite, where all three log densities are finite.

        Raises:
            NonFiniteError: Always.
        """
        with torch.random.fork_rng():
            what = _name_term(self.vae, batch) or otherwise
        self.restore()
        named = "" if rows is None else f", batch of rows {rows[:5].tolist()}{' ...' if len(rows) > 5 else ''}"
        raise NonFiniteError(
            f"fit: {what} is not finite at step {self.steps + 1}{named}. The parameters of the last good step are in "
            "place. Lower the learning rate, set clip_norm, or declare the scale with a bounded transform."
        )

    def check_parameters(self, compiled: bool) -> None:
        """Ends its training where the last update made a parameter infinite or nan.

        Arguments:
            compiled: Whether the last step was compiled; such steps keep no copy of the buffers.
        """
        bad = next((name for name, parameter in self.both.named_parameters() if not finite(parameter)), None)
        if bad is None:
            return
        if compiled:
            self.keep_buffers()
        self.restore()
        self.diverge(
            NonFiniteError(
                f"fit: the update of step {self.steps} made `{bad}` infinite or nan. The parameters of the last good "
                "step are in place. Lower the learning rate or set clip_norm."
            )
        )

    # ------------------------------------------------------------------ its state

    def state(self) -> dict[str, Any]:
        """Returns all that its next step depends on, and its records; see `put_back`."""
        return {
            "modules": dict(self.both.state_dict()),
            "kept": [self.kept[id(parameter)] for parameter in self.both.parameters()],
            "optimizer": self.optimizer.state_dict(),
            "records": self.records.state(),
            "watch": self.watch.state(),
            "stream": None if self.stream is None else self.stream.get_state(),
            "stopped": self.stopped,
            "remark": self.remark,
        }

    def put_back(self, state: Mapping[str, Any]) -> None:
        """Puts a state in place; before the first step."""
        self.both.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in zip(self.both.parameters(), state["kept"], strict=True):
            self.kept[id(parameter)].copy_(kept)
        self.keep_buffers()
        self.records = Records.of(state["records"])
        self.watch.put_back(state["watch"])
        if self.stream is not None:
            self.stream.set_state(state["stream"])
        self.stopped, self.remark = state["stopped"], state["remark"]

    def _require_phases(self) -> None:
        """Raises for a trainable parameter that no phase moves."""
        moved = {id(p) for _, parameters in self.phases for p in parameters.values()}
        for name, parameter in self.both.named_parameters():
            if parameter.requires_grad and id(parameter) not in moved | self.exempt:
                raise InputError(
                    f"fit: no phase of `{self.inference.name}` moves `{name}`; name its group in the phase's `moves`, "
                    "or freeze it with requires_grad_(False)."
                )


def _checked(optimizer: Any) -> torch.optim.Optimizer:
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise InputError(
            f"fit: `optimizer` makes a torch.optim.Optimizer from parameters, such as "
            f"lambda p: torch.optim.Adam(p, lr=1e-3); it made a `{type(optimizer).__name__}`"
            f"{', which evaluates the loss several times a step' * isinstance(optimizer, torch.optim.LBFGS)}."
        )
    return optimizer


def _of_prior(vae: LatentVariableModel) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in vae.theta.items() if name.startswith("prior.")}


def finite(tensor: Tensor) -> bool:
    """Whether all values of a tensor are finite."""
    return bool(tensor.isfinite().all())


@torch.no_grad()
def _name_term(vae: LatentVariableModel, batch: Batch) -> str | None:
    """Which of the three log densities is not finite at the batch; None where all are."""
    posterior = "log q(z|x), the posterior,"
    if batch.context is not None:  # every density is nan where a label is unknown
        batch = batch.select(~batch.context.isnan().any(-1))
        if not batch.size:
            return None
    with pyro.validation_enabled(False):
        q = vae.posterior_given(batch)
        try:
            z = q.sample()
        except RuntimeError:  # torch refuses to draw with a scale or a probability of nan
            return posterior
        terms = {
            posterior: q.log_prob(z),
            "log p(z), the prior,": vae.prior_given(batch).log_prob(z),
            "log p(x|z), the likelihood,": vae.log_likelihood_of(z, vae.typed(batch)),
        }
    return next((name for name, value in terms.items() if not finite(value)), None)


def active(members: list[Member]) -> Iterator[Member]:
    """Yields the members that still train."""
    return (member for member in members if not member.stopped)
