r"""What is compared: models that are each trained by one algorithm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_vae.datasets.data import Data
from pyro_vae.distributions.support import is_discrete
from pyro_vae.errors import InputError
from pyro_vae.experiment.choices import InferenceSpec
from pyro_vae.experiment.experiment import Experiment
from pyro_vae.experiment.grid import variants
from pyro_vae.experiment.mixed import MixedSpec


@dataclass(frozen=True)
class Candidate:
    """A model and the algorithm that trains it.

    Attributes:
        label: Its name in tables: what varies, and the algorithm where several are compared.
        experiment: Its experiment, completed with the choices that follow from the data.
        data: Its data, prepared for its likelihood.
        spec: The algorithm.
        changes: What varies, by the key's path in the file.
        measure: What log p(x) is the log of; only candidates of one measure are compared.
    """

    label: str
    experiment: Experiment
    data: Data
    spec: InferenceSpec
    changes: Mapping[str, Any] = field(default_factory=dict)
    measure: str = ""

    @property
    def file_name(self) -> str:
        """The label as a part of a file's name."""
        return file_name(self.label)


@dataclass(frozen=True)
class Declared:
    """A candidate before its data are there.

    Attributes:
        label: As for `Candidate`.
        experiment: Its experiment, with one algorithm.
        changes: As for `Candidate`.
        reason: Why it cannot work; empty otherwise.
    """

    label: str
    experiment: Experiment
    changes: Mapping[str, Any]
    reason: str = ""

    @property
    def spec(self) -> InferenceSpec:
        """The algorithm."""
        return self.experiment.inference[0]


def declared_candidates(experiment: Experiment) -> list[Declared]:
    """Returns the candidates of an experiment, also those that cannot work.

    Raises:
        InputError: If two of them have one label or one file name.
    """
    grid, found = variants(experiment), []
    several = {spec.label for each in grid if each.experiment is not None for spec in each.experiment.inference}
    for variant in grid:
        if variant.experiment is None:
            found.append(Declared(variant.label, experiment, variant.changes, variant.reason))
            continue
        for spec in variant.experiment.inference:
            shown = len(several) > 1 or not variant.label
            said = [variant.label, *([spec.label] if shown and "inference" not in variant.changes else [])]
            one = variant.experiment.model_copy(update={"inference": [spec]})
            found.append(Declared(", ".join(filter(None, said)) or spec.label, one, variant.changes))
    names = [file_name(each.label) for each in found]
    for each, name in zip(found, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"two candidates are called `{each.label}`; name them by `models`.")
    return found


def measure_of(experiment: Experiment, data: Data, model: Any) -> str:
    """Returns what log p(x) of a model is the log of: a density or a probability, and of which data.

    Densities are in the data's own units, whatever the scaling. So they are comparable with each other, and not with
    probabilities of whole numbers or of bits.

    Arguments:
        experiment: The experiment, as `Experiment.completed` returns it.
        data: Its data.
        model: The model that it builds.
    """
    if data.cross_entropy:
        return "cross-entropy of grey values, not a likelihood"
    likelihood = experiment.likelihood
    if experiment.program is not None:
        discrete = list(model.observed_discrete.values())
    elif isinstance(likelihood, MixedSpec):
        discrete = [is_discrete(support) for support in likelihood.supports.values()]
    else:
        discrete = [likelihood.support is not None and is_discrete(likelihood.support)]
    if all(discrete):
        drawn = "threshold" if data.binarisation == "threshold" else "random"
        return "probability of the values" if data.binarisation == "none" else f"probability of {drawn} bits"
    if not any(discrete):
        return "density in the data's own units"
    kinds = "".join("p" if each else "d" for each in discrete)
    return f"probability of some columns and density of others ({kinds})"


def file_name(label: str) -> str:
    """Returns a label as a part of a file's name."""
    return re.sub(r"[/\\:*?\"<>|,\s]+", "-", label)
