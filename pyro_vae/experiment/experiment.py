r"""An experiment: data, prior, likelihood, posterior and inference algorithms as one validated file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import (
    Field,
    NonNegativeInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from pyro_vae.datasets import loading
from pyro_vae.datasets.data import Data
from pyro_vae.datasets.description import describe
from pyro_vae.errors import InputError
from pyro_vae.experiment.assembly import assembled, explained
from pyro_vae.experiment.choices import InferenceSpec, Strict
from pyro_vae.experiment.data import DataSpec, Seed
from pyro_vae.experiment.distribution import DistributionSpec, ParameterPriorSpec
from pyro_vae.experiment.encoder_input import fit_inputs
from pyro_vae.experiment.error_lines import line_of
from pyro_vae.experiment.grid import check_grid
from pyro_vae.experiment.mixed import MixedSpec
from pyro_vae.experiment.network import MOST, Size, code_allowed
from pyro_vae.experiment.part import AnyPart, HierarchySpec
from pyro_vae.experiment.place import check_declared
from pyro_vae.experiment.settings import Evaluation, Networks, TrainingSpec
from pyro_vae.experiment.user_program import ProgramField, build_program, program_name, training_rows
from pyro_vae.experiment.yaml_file import read_yaml, write_yaml
from pyro_vae.vae.vae import VAE

_SIZE = {"type": "integer", "exclusiveMinimum": 0}
_SHAPE = {
    "type": "object",
    "properties": {"shape": {"type": "array", "items": _SIZE, "minItems": 1}},
    "required": ["shape"],
    "additionalProperties": False,
}
_LATENT = {"anyOf": [_SIZE, _SHAPE]}


# Keys that declare a VAE, and have no place beside a program.
_OF_A_VAE = ("cells", "covariates", "latent", "prior", "likelihood", "posterior", "networks", "parameter_prior")
_MOST_SEEDS = 10_000
# Number of errors of a file that are shown.
_SHOWN = 10


class Experiment(Strict):
    """All settings of a comparison, with defaults; see the README for an example file.

    The model is the VAE that ``prior``, ``likelihood``, ``posterior`` and ``networks`` declare, or any Pyro model and
    guide: ``program``, a function of the training data that returns a `Program`. A file names it as
    ``my_module:make``. In Python it is the function itself, which is called under each seed, or a `Program`, which is
    copied.

    ``vary`` makes every combination of the values of some keys a candidate, such as ``{"prior": ["Normal", "flow"],
    "latent": [4, 8]}``; keys of one line vary together (``{"prior, latent": [["Normal", 4], ["flow", 8]]}``).
    ``models`` names candidates by their changes.

    Example:
        >>> experiment = Experiment.parse({"data": "digits", "latent": 2, "inference": ["aevb"]})
        >>> experiment.likelihood.family, experiment.training.epochs
        ('Bernoulli', 50)
    """

    data: DataSpec = DataSpec(name="digits")
    program: ProgramField = None
    cells: Size | None = None
    covariates: NonNegativeInt | None = None
    latent: Annotated[Any, WithJsonSchema(_LATENT)] = 8
    prior: AnyPart = DistributionSpec.model_validate({"family": "Normal", "loc": 0, "scale": 1})
    likelihood: AnyPart = DistributionSpec(family="Bernoulli")
    posterior: AnyPart | None = None
    networks: Networks = Networks()
    parameter_prior: ParameterPriorSpec | None = None
    inference: Annotated[list[InferenceSpec], Field(min_length=1)] = Field(
        default_factory=lambda: [InferenceSpec(name=name) for name in ("aevb", "analytic-kl", "wake-sleep")]
    )
    training: TrainingSpec = Field(default_factory=lambda: TrainingSpec(epochs=50))
    evaluation: Evaluation = Evaluation()
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [0, 1, 2])
    device: str = "auto"
    vary: dict[str, Any] = Field(default_factory=dict)
    models: dict[str, Any] = Field(default_factory=dict)

    @field_validator("latent")
    @classmethod
    def _shape(cls, value: Any) -> Any:
        sizes = value["shape"] if isinstance(value, dict) and list(value) == ["shape"] else [value]
        if isinstance(value, list):
            raise ValueError(
                f"expected one number of latents (got {value!r}); for latents of that shape write {{shape: {value!r}}}"
            )
        whole = isinstance(sizes, list) and all(type(size) is int and 0 < size <= MOST for size in sizes)
        if not whole or not sizes:
            raise ValueError(
                f"expected a positive integer up to {MOST:,}, or a shape such as {{shape: [3, 3]}} (got {value!r})"
            )
        return value

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of the latents, as ``latent`` says it."""
        return (self.latent,) if isinstance(self.latent, int) else tuple(self.latent["shape"])

    @field_validator("prior", "posterior")
    @classmethod
    def _reads_nothing(cls, part: Any) -> Any:
        if part is not None and part.reads is not None:
            raise ValueError("`reads` is a key of the likelihood: it names the layers of a hierarchy that it receives")
        return part

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= _MOST_SEEDS:
                raise ValueError(f"expected a number of seeds from 1 to {_MOST_SEEDS:,}, or a list of them")
            return list(range(value))
        return value

    @field_validator("inference", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [name.strip() for name in value.split(",")]
        return value if isinstance(value, list) else [value]

    @model_validator(mode="after")
    def _one_model(self) -> Experiment:
        """Refuses keys that declare a VAE beside a program."""
        both = [f"`{key}`" for key in _OF_A_VAE if key in self.model_fields_set and self.program is not None]
        if both:
            raise ValueError(
                f"{', '.join(both)}: declares a VAE, and `program: {program_name(self.program)}` is the whole model; "
                f"leave {', '.join(both)} out, or `program`"
            )
        return self

    @model_validator(mode="after")
    def _grid(self) -> Experiment:
        check_grid(self.vary, self.models, type(self).model_fields)
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Writes no key of a VAE where there is a program, and no grid where nothing varies."""
        content: dict[str, Any] = handler(self)
        left_out = [name for name in ("vary", "models") if not getattr(self, name)]
        left_out += [] if self.program is None else _OF_A_VAE
        return {name: value for name, value in content.items() if name not in left_out}

    @model_validator(mode="after")
    def _latent_of_layers(self) -> Experiment:
        """Sets the number of latents to the total size of a hierarchy's layers."""
        if not isinstance(self.prior, HierarchySpec):
            return self
        (total,) = self.prior.event_shape(())
        if "latent" not in self.model_fields_set:
            self.__dict__["latent"] = total  # the model is frozen
        elif self.latent_shape != (total,):
            raise ValueError(f"`latent`: got {self.latent}, but the prior's layers have {total}; leave it out")
        return self

    @model_validator(mode="after")
    def _no_twins(self) -> Experiment:
        labels = [spec.label for spec in self.inference]
        for value in (*labels, *self.seeds):
            if [*labels, *self.seeds].count(value) > 1:
                raise ValueError(f"`{value}` is listed twice among the inference algorithms or seeds")
        return self

    @classmethod
    def parse(cls, content: dict[str, Any], source: str = "experiment", *, allow_code: bool = False) -> Experiment:
        """Returns the experiment that a mapping describes.

        Arguments:
            content: The mapping.
            source: Name of the mapping in errors.
            allow_code: Whether it may name the user's own networks (``module: my_package.nets.Encoder``) and program
                (``program: my_module:make``), whose code then runs.

        Raises:
            InputError: With one line for each mistake: the path in the file, the value and what is allowed.
        """
        try:
            with code_allowed(allow_code):
                return cls.model_validate(content)
        except ValidationError as error:
            details = error.errors()
            lines = [line_of(source, cls, detail) for detail in details[:_SHOWN]]
            lines += [f"{source}: and {len(details) - _SHOWN:,} more."] if len(details) > _SHOWN else []
            raise InputError("\n".join(lines)) from None

    def varied(self, vary: Mapping[str, Any]) -> Experiment:
        """Returns the experiment with other keys that vary.

        Arguments:
            vary: Values of keys; a tuple is a list.

        Raises:
            InputError: For a key or values without a meaning.
        """
        own = {name: getattr(self, name) for name in self.model_fields_set}
        values = {key: list(each) if isinstance(each, tuple) else each for key, each in vary.items()}
        return self.parse({**own, "vary": values})

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], *, allow_code: bool = False) -> Experiment:
        """Reads an experiment file; the path of a data file is relative to it.

        Arguments:
            path: Path of the file.
            allow_code: As for `parse`.

        Raises:
            InputError: If the file cannot be read or is not valid.
        """
        path = Path(path)
        return cls.parse(read_yaml(path), str(path), allow_code=allow_code).relative_to(path.parent)

    def relative_to(self, folder: Path) -> Experiment:
        """Returns the experiment with the path of its data file relative to ``folder``."""
        beside = folder / Path(self.data.name).expanduser()
        if self.data.name in loading.names() or not beside.is_file():
            return self
        data = self.data.model_copy(update={"name": str(beside.resolve())})
        return self.model_copy(update={"data": data})

    def to_yaml(self, path: Path) -> None:
        """Writes the experiment, with its defaults, as a file for `from_yaml`."""
        write_yaml(path, self.model_dump(mode="json", exclude_none=True))

    @property
    def torch_device(self) -> torch.device:
        """The device of the computation.

        Raises:
            InputError: If it is unknown or not available.
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

    def resolved(self) -> Experiment:
        """Returns the experiment with all choices that depend on the data; see `MixedSpec.resolved`."""
        spec, likelihood = self.data, self.likelihood
        if not isinstance(likelihood, MixedSpec):
            return self
        if spec.name in loading.names():
            raise InputError(
                f"likelihood: `mixed` is for tables with named columns, but `{spec.name}` is a named set; choose one "
                "likelihood for all cells."
            )
        contents = describe(
            spec.name,
            missing=spec.missing,
            context=spec.context,
            offset=spec.offset,
            decimal=spec.decimal,
            thousands=spec.thousands,
        )
        chosen = explained("likelihood", lambda: likelihood.resolved(contents))
        return self.model_copy(update={"likelihood": chosen})

    def completed(self, data: Data) -> Experiment:
        """Returns the experiment with a `total_count` of the likelihood from the data, if it is not declared.

        Arguments:
            data: Result of `load_data`.
        """
        likelihood = self.likelihood
        if self.program is not None or not isinstance(likelihood, DistributionSpec):
            return self
        totals = [x.sum(1).max() for x in (data.train, data.valid, data.test) if x is not None]
        total = torch.stack(totals).max()
        if not bool(total.isfinite()):
            return self
        return self.model_copy(update={"likelihood": likelihood.completed(int(total))})

    @property
    def data_support(self) -> Any:
        """The support, or that of each column, for which the data are prepared; None for a program."""
        likelihood = self.resolved().likelihood
        if self.program is not None:
            return None
        return likelihood.supports if isinstance(likelihood, MixedSpec) else likelihood.support

    def load_data(self, progress: bool = False) -> Data:
        """Returns the data, prepared for the likelihood's support; for a program, as real numbers.

        Raises:
            InputError: If the data cannot be found, read or used with the likelihood.
        """
        spec = self.data
        return loading.load(
            spec.name,
            support=self.data_support,
            binarisation=spec.binarisation,
            scaling=spec.scaling,
            missing=spec.missing,
            context=spec.context,
            offset=spec.offset,
            labelled=spec.labelled,
            split=spec.split,
            decimal=spec.decimal,
            thousands=spec.thousands,
            seed=spec.seed,
            progress=progress,
        )

    def build(self, data: Data | None = None) -> Any:
        """Returns a new `VAE`, or `Program`, with parameters drawn from torch's global random stream.

        Arguments:
            data: Result of `load_data`; by default the data are loaded.

        Raises:
            InputError: If the parts do not fit each other or the data, or ``cells`` or ``covariates`` are not those
                of the data; and if a program cannot be made.
        """
        data = self.load_data() if data is None else data
        if self.program is not None:
            return build_program(self.program, training_rows(data), data.scaling)
        complete = self.resolved().completed(data)
        vae = complete.assemble(data.train.shape[1], data.image_shape, len(data.train), data.context_features)
        fit_inputs(vae, data.train)
        return vae

    def assemble(self, dim: int, image_shape: tuple[int, ...] | None, size: int, context_features: int = 0) -> VAE:
        """Returns a new VAE for ``size`` data of ``dim`` cells each, with ``context_features`` covariates.

        It is declared with ``transformed_data=True``, for it sees what the data's transform makes of them.
        """
        for name, declared, found in (("cells", self.cells, dim), ("covariates", self.covariates, context_features)):
            check_declared(name, declared, found)
        return assembled(self, dim, image_shape, size, context_features)
