r"""An experiment: data, prior, likelihood, posterior and inference algorithms as one validated file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pyro
import torch
from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from pyro_vae import datasets
from pyro_vae.errors import InputError, near_match
from pyro_vae.experiment.data import DataSpec, Seed
from pyro_vae.experiment.distribution import DistributionSpec
from pyro_vae.experiment.named import InferenceSpec, OptimizerSpec, ScheduleSpec, Strict
from pyro_vae.experiment.network import NetworkSpec
from pyro_vae.experiment.yaml_file import read_yaml, write_yaml
from pyro_vae.parameter_prior import ParameterPrior
from pyro_vae.vae import VAE


class Networks(Strict):
    """The networks of the posterior (encoder) and of the likelihood (decoder)."""

    encoder: NetworkSpec = NetworkSpec(mlp=[200])
    decoder: NetworkSpec = NetworkSpec(mlp=[200])


class Training(Strict):
    """The arguments of `pyro_vae.fit`."""

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 100
    optimizer: OptimizerSpec = Field(default_factory=lambda: OptimizerSpec(name="Adam", arguments={"lr": 0.001}))
    schedule: ScheduleSpec | None = None
    clip_norm: PositiveFloat | None = None
    validation_every: PositiveInt | None = None
    early_stopping: PositiveInt | None = None
    keep: Literal["best", "last"] = "last"

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("epochs") is None and value.get("steps") is None:
            return {**value, "epochs": 50}
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("expected exactly one of `epochs` and `steps`")
        return self

    def total_steps(self, size: int) -> int:
        """Returns the number of steps over ``size`` training data."""
        return self.steps or (self.epochs or 0) * -(-size // min(self.batch_size, size))


class Evaluation(Strict):
    """How the trained models are judged.

    Attributes:
        num_samples: Importance samples for each test datum.
        elbo_samples: Draws for each test datum.
        ais_data: Test data, the first, for annealed importance sampling, which takes the place of importance
            sampling where no posterior is trained.
        temperatures: Of annealed importance sampling.
        chains: Of annealed importance sampling, for each datum.
        posterior_checks: Test data, the first, for the inference gap and the gradients' noise; 0 for no checks.
    """

    num_samples: Annotated[int, Field(ge=2)] = 1000
    elbo_samples: Annotated[int, Field(ge=2)] = 10
    ais_data: PositiveInt = 500
    temperatures: Annotated[int, Field(ge=2)] = 500
    chains: PositiveInt = 8
    posterior_checks: Annotated[int, Field(ge=0)] = 100


class ParameterPriorSpec(DistributionSpec):
    """A prior over the generative parameters, with fixed numbers; see `pyro_vae.parameter_prior.ParameterPrior`."""

    biases: bool = False

    @model_validator(mode="after")
    def _numbers(self) -> ParameterPriorSpec:
        for name, value in (self.model_extra or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"`{name}`: a parameter prior has fixed numbers, got {value!r}")
        with pyro.validation_enabled(True):
            self.build_prior()
        return self

    def build_prior(self) -> ParameterPrior:
        """Returns the `ParameterPrior`."""
        numbers = {name: float(value) for name, value in (self.model_extra or {}).items()}
        return ParameterPrior(self.family_class(**numbers), self.biases)


class Experiment(Strict):
    """Everything that a comparison needs, with defaults; see the README for an example file.

    Example:
        >>> experiment = Experiment.parse({"data": "digits", "latent": 2, "inference": ["aevb"]})
        >>> experiment.likelihood.family, experiment.training.epochs
        ('Bernoulli', 50)
    """

    data: DataSpec = DataSpec(name="digits")
    latent: PositiveInt = 8
    prior: DistributionSpec = DistributionSpec.model_validate({"family": "Normal", "loc": 0, "scale": 1})
    likelihood: DistributionSpec = DistributionSpec(family="Bernoulli")
    posterior: DistributionSpec | None = None
    networks: Networks = Networks()
    parameter_prior: ParameterPriorSpec | None = None
    inference: Annotated[list[InferenceSpec], Field(min_length=1)] = Field(
        default_factory=lambda: [InferenceSpec(name=name) for name in ("aevb", "analytic-kl", "wake-sleep")]
    )
    training: Training = Field(default_factory=lambda: Training(epochs=50))
    evaluation: Evaluation = Evaluation()
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [0, 1, 2])
    device: str = "auto"

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ValueError("expected a positive number of seeds, or a list of them")
            return list(range(value))
        return value

    @field_validator("inference", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [name.strip() for name in value.split(",")]
        return value if isinstance(value, list) else [value]

    @model_validator(mode="after")
    def _no_twins(self) -> Experiment:
        labels = [spec.label for spec in self.inference]
        for value in (*labels, *self.seeds):
            if [*labels, *self.seeds].count(value) > 1:
                raise ValueError(f"`{value}` is listed twice among the inference algorithms or seeds")
        return self

    @classmethod
    def parse(cls, content: dict[str, Any], source: str = "experiment") -> Experiment:
        """Returns the experiment that a mapping describes.

        Raises:
            InputError: One line for each mistake: the path in the file, the value and what is allowed.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError("\n".join(_line(source, cls, detail) for detail in error.errors())) from None

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Experiment:
        """Reads an experiment file; a data file's path in it is relative to the file.

        Raises:
            InputError: For a file that cannot be read or is not valid.
        """
        path = Path(path)
        return cls.parse(read_yaml(path), str(path)).relative_to(path.parent)

    def relative_to(self, folder: Path) -> Experiment:
        """Returns the experiment with a data file's path taken from ``folder``."""
        beside = folder / Path(self.data.name).expanduser()
        if self.data.name in datasets.names() or not beside.is_file():
            return self
        data = self.data.model_copy(update={"name": str(beside.resolve())})
        return self.model_copy(update={"data": data})

    def to_yaml(self, path: Path) -> None:
        """Writes the experiment, defaults included, as a file that `from_yaml` reads."""
        write_yaml(path, self.model_dump(mode="json", exclude_none=True))

    @property
    def torch_device(self) -> torch.device:
        """The device to run on.

        Raises:
            InputError: Where it is unknown or not there.
        """
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError:
            device = torch.device("meta")
        if device.type not in ("cpu", "cuda"):
            raise InputError(f"device: `{name}` is unknown; use `auto`, `cpu`, `cuda` or `cuda:0`.")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError("device: no CUDA device is available; use `cpu` or `auto`.")
        return device

    def load_data(self, progress: bool = False) -> datasets.Data:
        """Returns the data, prepared for the likelihood's support.

        Raises:
            InputError: For data that cannot be found, read or used with the likelihood.
        """
        spec = self.data
        support = self.likelihood.family_class.support
        return datasets.load(
            spec.name,
            support=support if isinstance(support, torch.distributions.constraints.Constraint) else None,
            binarisation=spec.binarisation,
            scaling=spec.scaling,
            split=spec.split,
            seed=spec.seed,
            progress=progress,
        )

    def build(self, data: datasets.Data | None = None) -> VAE:
        """Returns a new VAE, its parameters drawn from torch's global random stream.

        Arguments:
            data: What `load_data` returns; loaded where left out.

        Raises:
            InputError: Where the parts do not fit each other or the data.
        """
        data = self.load_data() if data is None else data
        return self.assemble(data.train.shape[1], data.image_shape, len(data.train))

    def assemble(self, dim: int, image_shape: tuple[int, ...] | None, size: int) -> VAE:
        """Returns a new VAE for ``size`` data of ``dim`` cells each."""
        latent = self.latent
        prior = _explained("prior", lambda: self.prior.build((latent,)))
        encoder = _explained("networks.encoder", lambda: self.networks.encoder.build_encoder(dim, image_shape))
        width = prior().event_shape.numel()
        count = _explained("likelihood", lambda: self.likelihood.num_network_parameters((dim,)))
        decoder, head = _explained(
            "networks.decoder", lambda: self.networks.decoder.build_decoder(width, image_shape, count)
        )
        likelihood = _explained("likelihood", lambda: self.likelihood.build((dim,), decoder, head))
        posterior = encoder
        if self.posterior is not None:
            named = self.posterior
            posterior = _explained("posterior", lambda: named.build((latent,), encoder))
        parameter_prior = None if self.parameter_prior is None else self.parameter_prior.build_prior()
        return VAE(prior, likelihood, posterior, size=size, parameter_prior=parameter_prior)


def _explained(path: str, build: Any) -> Any:
    """Calls ``build``; an `InputError` gets the path in the experiment file."""
    try:
        return build()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _line(source: str, model: type[Strict], detail: Any) -> str:
    """One line for one of pydantic's error details."""
    path = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "model_type":
        keys = ", ".join(f"`{key}`" for key in _fields_at(model, detail["loc"]))
        message = f"expected a mapping with keys among {keys}"
    if detail["type"] == "extra_forbidden":
        fields = _fields_at(model, detail["loc"][:-1])
        return f"{source}: `{path}` is no key here; {near_match(str(detail['loc'][-1]), fields)}"
    given = f" (got {detail['input']!r})" if detail["type"] != "value_error" else ""
    return f"{source}: {f'`{path}`: ' if path else ''}{message}{given}"


def _fields_at(model: type[Strict], path: tuple[Any, ...]) -> list[str]:
    """The keys that a part of the file may have."""
    for part in path:
        field = model.model_fields.get(str(part))
        candidates = () if field is None else (field.annotation, *getattr(field.annotation, "__args__", ()))
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, Strict)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
