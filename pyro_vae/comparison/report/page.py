"""The page of a comparison: one HTML file that needs no other file."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from pyro_vae.comparison.comparison import Comparison
from pyro_vae.comparison.report.check_sections import check_sections
from pyro_vae.comparison.report.model_sections import model_sections
from pyro_vae.comparison.report.tables import data_phrase, seeds_text, tables_text
from pyro_vae.comparison.report.wording import count, enumerated, some_of
from pyro_vae.datasets.data import Data
from pyro_vae.experiment.user_program import program_name
from pyro_vae.runtime.whole_file import write_whole

# Largest number of algorithms that the heading names.
_FEW = 4


def write_report(comparison: Comparison, path: Path) -> None:
    """Writes a comparison as one HTML file that can be opened from disk, without a network.

    Draws from the models have their own seed; the global random states are not changed.

    Arguments:
        comparison: The comparison to write.
        path: The file to write.
    """
    template = files("pyro_vae.comparison.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    dump = comparison.experiment.model_dump(mode="json", exclude_none=True)
    page = environment.from_string(template).render(
        title=_title(comparison),
        sentence=_sentence(comparison),
        verdicts=[part.verdict() for part in comparison.by_measure()],
        tables=tables_text(comparison),
        sections=[*model_sections(comparison), *check_sections(comparison)],
        seeds=seeds_text(comparison),
        experiment=yaml.safe_dump(dump, sort_keys=False, default_flow_style=None, width=100),
        environment=_environment(comparison.environment),
        data=_data_record(comparison.data),
    )
    write_whole(path, page.encode())


def _title(comparison: Comparison) -> str:
    labels = comparison.labels
    kind = "candidates" if comparison.varies else "inference algorithms"
    what = enumerated(labels) if len(labels) <= _FEW and not comparison.varies else f"{len(labels)} {kind}"
    return f"{what} on {comparison.data.name}"


def _sentence(comparison: Comparison) -> str:
    """One sentence on the algorithms, the model and the data."""
    experiment, data = comparison.experiment, comparison.data
    training = experiment.training
    length = count(training.epochs, "epoch") if training.epochs is not None else count(training.steps or 0, "step")
    verb = "compared as inference algorithms for" if len(comparison.labels) > 1 else "used to train"
    subject = f"{enumerated(comparison.labels)} {verb} {_model(comparison)}"
    if comparison.varies:
        subject = f"{count(len(comparison.labels), 'candidate')}, each a model and the algorithm that trains it"
    return (
        f"{subject}: trained for {length} on the "
        f"{len(data.train)} training data of {data_phrase(comparison)}, under {count(len(experiment.seeds), 'seed')}, "
        f"and evaluated on {some_of(comparison.num_evaluated, comparison.num_test, drawn=True).removeprefix('all ')}."
    )


def _model(comparison: Comparison) -> str:
    """The VAE or the program in words."""
    experiment = comparison.experiment
    if experiment.program is not None:
        model = comparison.runs[0].vae
        sites = [site.name for site in (*model.sites, *model.shared_sites)]
        latents = count(model.latent_shape.numel(), "latent dimension")
        return f"the Pyro program {program_name(experiment.program)} with {latents} ({', '.join(sites)})"
    families = [f"{experiment.prior.title} prior", f"{experiment.likelihood.title} likelihood"]
    if experiment.posterior is not None:
        families.append(f"{experiment.posterior.title} posterior")
    latents = count(math.prod(experiment.latent_shape), "latent dimension")
    return f"a variational autoencoder with {latents} ({', '.join(families)})"


def _environment(environment: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in environment.items():
        if name == "versions":
            rows += [(package, str(version)) for package, version in value.items()]
        elif value not in ("", None):
            rows.append(
                (
                    "wall time" if name == "wall_seconds" else name,
                    f"{value} s" if name == "wall_seconds" else str(value),
                )
            )
    return rows


def _data_record(data: Data) -> list[tuple[str, str]]:
    record = data.record()
    shape = record["image_shape"]
    rows = [
        ("name", record["name"]),
        ("data", ", ".join(f"{n} {part}" for part, n in record["n"].items())),
        ("cells", " × ".join(map(str, shape)) if shape else f"{record['dim']} columns"),
        ("binarisation", record["binarisation"]),
        ("scaling", record["scaling"]),
        ("split", "official" if record["split"] is None else " / ".join(f"{part:g}" for part in record["split"])),
        ("seed", str(record["seed"])),
        ("log-Jacobian", f"{record['log_jacobian']:.4f} nats"),
    ]
    return rows + [(f"sha256 of {Path(name).name}", digest) for name, digest in record["source"].items()]
