r"""The sections `networks`, `training` and `evaluation` of the experiment file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pyro_vae.experiment.choices import OptimizerSpec, ScheduleSpec, Strict
from pyro_vae.experiment.network import NetworkSpec
from pyro_vae.runtime.precision import Precision
from pyro_vae.training.options import Training


class Networks(Strict):
    """The networks of the posterior (encoder) and of the likelihood (decoder)."""

    encoder: NetworkSpec = NetworkSpec(mlp=[200])
    decoder: NetworkSpec = NetworkSpec(mlp=[200])


def _auto_or_bool(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"expected auto, true or false, got {value!r}")
    return value


class TrainingSpec(Strict):
    """The settings of a training run; `build` makes a `Training` of them.

    Attributes:
        together: Whether the seeds of an algorithm are trained in one program; by default on a GPU only.
    """

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 100
    drop_last: bool = False
    optimizer: OptimizerSpec = Field(default_factory=lambda: OptimizerSpec(name="Adam", arguments={"lr": 0.001}))
    schedule: ScheduleSpec | None = None
    clip_norm: PositiveFloat | None = None
    validation_every: PositiveInt | None = None
    early_stopping: PositiveInt | None = None
    keep: Literal["best", "last"] = "last"
    compile: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_bool)] = "auto"
    precision: Precision = "float32"
    start_at_data: bool = True
    together: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("epochs") is None and value.get("steps") is None:
            return {**value, "epochs": 50}
        return value

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSpec:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("expected exactly one of `epochs` and `steps`")
        return self

    def total_steps(self, size: int) -> int:
        """Returns the number of steps over ``size`` training data."""
        rows = min(self.batch_size, size)
        return self.steps or (self.epochs or 0) * (size // rows if self.drop_last else -(-size // rows))

    def build(self, size: int) -> Training:
        """Returns the settings of a run over ``size`` training data."""
        total = self.total_steps(size)
        return Training(
            optimizer=self.optimizer.build,
            steps=total,
            batch_size=self.batch_size,
            drop_last=self.drop_last,
            schedule=None if self.schedule is None else self.schedule.build(total),
            clip_norm=self.clip_norm,
            validation_every=self.validation_every,
            early_stopping=self.early_stopping,
            keep=self.keep,
            compile=self.compile,
            precision=self.precision,
            start_at_data=self.start_at_data,
        )


class Evaluation(Strict):
    """How the trained models are judged.

    Attributes:
        num_data: Most test data that the models are judged on. If there are more, so many are drawn at random, with
            the seed of the data: the same for every run, so that differences stay paired.
        num_samples: Importance samples for each test datum.
        elbo_samples: Draws for each test datum.
        ais_data: Test data, the first of these, for annealed importance sampling, which takes the place of importance
            sampling where no posterior is trained.
        temperatures: Of annealed importance sampling.
        chains: Of annealed importance sampling, for each datum.
        posterior_checks: Test data, the first of these, for the inference gap and the gradients' noise; 0 for none.
    """

    num_data: Annotated[int, Field(ge=2)] = 10_000
    num_samples: Annotated[int, Field(ge=2)] = 1000
    elbo_samples: Annotated[int, Field(ge=2)] = 10
    ais_data: PositiveInt = 500
    temperatures: Annotated[int, Field(ge=2)] = 500
    chains: PositiveInt = 8
    posterior_checks: Annotated[int, Field(ge=0)] = 100
