"""The user's own Pyro program in an experiment: what may stand there, what is refused, and what each seed gets."""

from __future__ import annotations

import re
import sys
import textwrap
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae
from pyro_vae import Batch, Experiment, Program
from pyro_vae.comparison.candidate import Candidate
from pyro_vae.comparison.execution import built
from pyro_vae.errors import InputError
from pyro_vae.experiment.user_program import build_program, training_rows

MODULE = """
    import pyro, pyro.distributions as dist, torch
    from torch import nn
    from pyro_vae import Program

    NUMBER = 3

    def make(x):
        encoder = nn.Linear(x.shape[1], 1)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], x.shape[1]), 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

        return Program(model, guide, example=x[:10])

    def forgetful(x):
        def guide(x):
            with pyro.plate("data", len(x)):
                pass
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(2)).to_event(1), obs=x)
        return Program(model, guide, example=x[:10])

    def failing(x):
        return x.reshape(7, 7, 7)

    def nothing(x):
        make(x)

    def pair(x):
        return make, make
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user, and a table of two columns; returns the names of both."""
    (tmp_path / "own_programs.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_programs", raising=False)
    np.savetxt("rows.csv", np.random.default_rng(0).normal(3, 2, (60, 2)), delimiter=",", header="a,b", comments="")
    yield "own_programs", "rows.csv"
    sys.modules.pop("own_programs", None)


def experiment(program, **changes):
    return Experiment.parse({"data": "rows.csv", "program": program, **changes}, "e.yaml", allow_code=True)


def test_code_is_refused_unless_allowed_and_nothing_is_imported(own):
    content = {"program": "own_programs:make", "data": "rows.csv"}
    with pytest.raises(InputError, match=r"`own_programs:make` imports and runs code.*--allow-code.*allow_code=True"):
        Experiment.parse(content)
    allowed = Experiment.parse(content, allow_code=True)
    assert "own_programs" not in sys.modules
    assert allowed.build().latent_shape == (1,)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own_programs.make", "names a function of the training data that returns a Program, as my_module:make; got"),
        ("own_programs.py:make", "got a file, .*write its module, `own_programs:make`"),
        ("own programs:make", "got `own programs:make`"),
        (3, "in Python also the function itself, or a Program; got `3`"),
        (Program, "is a function of the training data"),
    ],
)
def test_what_names_no_function_is_refused_when_it_is_read(name, says):
    with pytest.raises(InputError, match=says):
        experiment(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own_program:make", "no module `own_program`; did you mean `own_programs`"),
        ("own_programs:mak", "`own_programs` has no `mak`; did you mean `make`"),
        ("own_programs:NUMBER", "`own_programs:NUMBER` is `3`; name a function"),
        ("own_programs:Program", "`own_programs:Program` is the class `Program`; name a function"),
        (
            "own_programs:forgetful",
            "`own_programs:forgetful`: Program: the guide has no plate `data` with a site in it",
        ),
        (
            "own_programs:failing",
            r"fails on the training data, a tensor of shape \(48, 2\) \(own_programs.py, line 33\): RuntimeError: .*"
            r"The data are standardised; `data: \{name: ..., scaling: none\}` leaves them",
        ),
        ("own_programs:nothing", "returns nothing; end it with return Program"),
        ("own_programs:pair", "returns a `tuple`; end it with return Program"),
    ],
)
def test_what_makes_no_program_is_refused_with_what_to_do(own, name, says):
    with pytest.raises(InputError, match=f"^program: .*{says}"):
        experiment(name).build()


def test_keys_of_a_vae_are_refused_beside_a_program_by_name():
    for key, value in {"prior": "Normal", "latent": 3, "networks": {"encoder": {"mlp": [8]}}, "cells": 2}.items():
        with pytest.raises(
            InputError, match=rf"`{key}`: declares a VAE, and `program: own_programs:make`.*leave `{key}`"
        ):
            experiment("own_programs:make", **{key: value})
    both = "`latent`, `likelihood`: declares a VAE"
    with pytest.raises(InputError, match=both):
        experiment("own_programs:make", likelihood="Normal", latent=2)


def test_the_file_names_the_program_and_no_key_of_a_vae(own, tmp_path):
    given = experiment("own_programs:make", inference=["aevb"])
    given.to_yaml(tmp_path / "e.yaml")
    text = (tmp_path / "e.yaml").read_text()
    assert "program: own_programs:make" in text
    for key in ("cells", "covariates", "latent", "prior", "likelihood", "posterior", "networks", "parameter_prior"):
        assert f"{key}:" not in text
    assert Experiment.from_yaml(tmp_path / "e.yaml", allow_code=True).program == "own_programs:make"
    assert "program" not in Experiment.parse({"data": "digits"}).model_dump(mode="json", exclude_none=True)


def test_a_function_of_python_is_written_by_its_name_if_it_has_one(own):
    import own_programs

    written = Experiment(program=own_programs.make, data="rows.csv").model_dump(mode="json")
    assert written["program"] == "own_programs:make"
    for unnamed in (lambda x: own_programs.make(x), own_programs.make(torch.zeros(20, 2))):
        assert Experiment(program=unnamed).model_dump(mode="json")["program"].startswith("<")
    with pytest.raises(InputError, match=r"pyro_vae.load\(..., program=...\)"):
        experiment("<Program in Python>")


def test_the_function_gets_the_training_data_as_a_step_sees_them(own):
    seen = []

    def make(data):
        seen.append(data)
        import own_programs

        return own_programs.make(torch.zeros(20, 2))

    plain = Experiment(program=make, data="rows.csv")
    data = plain.load_data()
    plain.build(data)
    assert torch.equal(seen[-1], data.train)
    assert (data.scaling, float(data.train.mean().abs()) < 1e-6) == ("standardise", True)
    conditional = Experiment(program=make, data={"name": "rows.csv", "context": ["b"], "missing": "mask"})
    conditional.build()
    assert [name for name, field in zip(Batch._fields, seen[-1], strict=True) if field is not None] == [
        "x",
        "context",
        "mask",
    ]
    binarised = Experiment(program=make, data={"name": "digits", "binarisation": "dynamic"})
    binarised.build()
    assert seen[-1].unique().tolist() == [0, 1]


def gaussian(x):
    """A program whose networks are drawn when it is made."""
    encoder = nn.Linear(x.shape[1], 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], x.shape[1]), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return Program(model, guide, example=x[:10])


def weights(program):
    return torch.cat([p.detach().flatten() for p in program.parameters()])


def test_each_seed_has_its_own_initial_parameters_and_all_algorithms_the_same(own):
    drawn = Experiment(program=gaussian, data="rows.csv", inference=["aevb", "iwae"])
    data = drawn.load_data()
    first, second = (built(Candidate(spec.label, drawn, data, spec), [3, 4])[0] for spec in drawn.inference)
    assert torch.equal(weights(first[0]), weights(second[0]))
    assert torch.equal(weights(first[1]), weights(second[1]))
    assert not torch.equal(weights(first[0]), weights(first[1]))


def test_a_program_and_one_that_is_returned_twice_are_copied(own):
    program = gaussian(torch.zeros(20, 2))
    data = Experiment(program=program, data="rows.csv").load_data()
    for given in (program, lambda x: program):
        first, second = (build_program(given, training_rows(data)) for _ in range(2))
        with torch.no_grad():
            next(first.parameters()).add_(1.0)
        assert torch.equal(weights(second), weights(program))
        assert not torch.equal(weights(first), weights(program))


def test_a_program_that_is_made_again_repeats_no_warning(own):
    def slow(x):
        warnings.warn("Program: several particles do not run at once", stacklevel=1)
        return gaussian(x)

    told = Experiment(program=slow, data="rows.csv", inference=["aevb"])
    with pytest.warns(UserWarning, match="at once"):
        told.build()
    (spec,) = told.inference
    built(Candidate(spec.label, told, told.load_data(), spec), [0])  # a warning is an error here


@pytest.mark.parametrize("name", ["m2", "enumeration", "autoencoder"])
def test_algorithms_that_train_no_such_program_are_refused_before_anything_trains(own, name, monkeypatch):
    monkeypatch.setattr("pyro_vae.comparison.compare.trained_runs", None)  # would fail otherwise
    refused = {"m2": "M2", "enumeration": "Enumeration", "autoencoder": "Autoencoder"}[name]
    with pytest.raises(InputError, match=f"^{refused}: .*use |declare"):
        pyro_vae.compare(Experiment(program=gaussian, data="rows.csv", inference=["aevb", name]))


def test_the_schema_has_the_key():
    pattern = Experiment.model_json_schema()["properties"]["program"]["anyOf"][0]["pattern"]
    assert re.fullmatch(pattern, "my_package.models:make")
    assert not re.fullmatch(pattern, "my_module.make")
