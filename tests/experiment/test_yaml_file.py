"""Hostile and damaged experiment files are refused by one line, in no time."""

from __future__ import annotations

import random
import time

import pytest

from pyro_vae.errors import InputError
from pyro_vae.experiment import Experiment
from pyro_vae.experiment.yaml_file import MOST_VALUES, parse_yaml, read_yaml
from tests.faults.mutate import text_of

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "a date": ("latent: 2024-13-45", r"latent.*expected a positive integer"),
    "a tagged date": ("latent: !!timestamp x", r"latent.*expected a positive integer"),
    "a tagged number": ("latent: !!int x", "file"),
    "a list as key": ("{[a]: 1, [a]: 2}", "a key is a word"),
    "a mapping as key": ("? {a: 1}\n: 2", "a key is a word"),
    "a key twice": ("latent: 2\nlatent: 3", "the key `latent` is given twice"),
    "deep": ("[" * 1000 + "]" * 1000, "nested more than 50 levels deep"),
    "deep mappings": ("{a: " * 1000 + "1" + "}" * 1000, "nested more than 50 levels deep"),
    "an alias bomb": (BOMB, f"more than {MOST_VALUES:,} values"),
    "a node in itself": ("a: &a [*a]", f"more than {MOST_VALUES:,} values"),
    "many keys": ("{" + ", ".join(f"k{i}: 1" for i in range(9_000)) + "}", "`k0` is no key here"),
    "long": ("a: " + "x" * 1_000_001, "characters"),
    "a Python object": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "an unknown alias": ("a: *b", "undefined alias"),
    "control characters": ("a: \x01", "special characters are not allowed"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_by_one_line_at_once(tmp_path, text, message):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(InputError, match=message) as error:
        Experiment.from_yaml(path)
    assert time.process_time() - start < 5
    *lines, last = str(error.value).splitlines()
    assert all(line.startswith(str(path)) for line in (*lines, last))
    assert len(lines) <= 10
    assert len(last) < 500


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "file.yaml"
    with path.open("w") as file:
        file.truncate(2**33)  # 8 GiB of zeros that take no space
    with pytest.raises(InputError, match="is larger than an experiment file can be"):
        read_yaml(path)


def test_aliases_of_a_usual_size_are_read():
    assert parse_yaml("a: &a {b: [1, 2]}\nc: *a", "file") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}


def test_mutated_files_give_an_experiment_or_one_line():
    """A thousand files, each with a few characters changed, deleted or doubled."""
    text = """data: {name: digits, binarisation: dynamic}
latent: 8
prior: {mixture: {family: Normal, components: 3, scale: learned}}
likelihood: {family: Bernoulli}
networks: {encoder: {mlp: [200]}, decoder: {mlp: [200]}}
parameter_prior: {family: Normal, loc: 0, scale: 1}
inference: [aevb, {iwae: {num_particles: 5}}]
training: {epochs: 5, optimizer: {Adam: {lr: 1e-3}}, schedule: {cosine: {}}}
evaluation: {num_samples: 100}
seeds: [0, 1]
"""
    generator, said = random.Random(0), []
    for _ in range(1000):
        try:
            Experiment.parse(parse_yaml(text_of(text, generator), "file") or {}, "file")
        except InputError as error:
            said.append(str(error))
    assert all(line.startswith("file") for text in said for line in text.splitlines())
    assert 300 < len(said) < 1000


WRONG = [
    ("prior: {mixture: {family: []}}", "family"),
    ("prior: {mixture: {family: {a: 1}}}", "family"),
    ("prior: {family: Normal, loc: {network: 2.5}}", "a shape is a tuple of positive integers"),
    ("prior: {family: Normal, loc: {learned: {noise: a}}}", "expected a number as noise, got 'a'"),
    ("prior: {family: Normal, loc: {network: {transform: []}}}", "unknown transform"),
    ("likelihood: {mixed: {kind: {Categorical: 1000000000000}}}", "two to 10,000,000 levels"),
    (f"parameter_prior: {{family: Normal, loc: {10**400}, scale: 1}}", "a whole number is below 2.63"),
    ("latent: 9223372036854775808", "a whole number is below 2.63; write a larger one as 1e20"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_value_of_another_type_or_size_is_refused_by_its_key(text, message):
    with pytest.raises(InputError, match=message):
        Experiment.parse(parse_yaml(text, "file"), "file").assemble(6, None, 10)


def test_the_largest_whole_number_is_read():
    assert parse_yaml("[9223372036854775807, -9223372036854775807, 0x10]", "file") == [2**63 - 1, 1 - 2**63, 16]


SMALL = {"networks": {"encoder": {"mlp": [3]}, "decoder": {"mlp": [3]}}}
UNBUILDABLE = [
    ({"parameter_prior": {"family": "Normal", "loc": 0}}, "needs numbers for all parameters; give scale"),
    ({"prior": {"family": "Normal", "loc": {"learned": "a"}}}, "is not numeric"),
    ({"prior": {"family": "Normal", "loc": {"fixed": "a"}}}, "is not numeric"),
    ({"prior": {"mixture": {"components": 10**9}}}, "less than or equal to 10000000"),
    ({"prior": {"vamp": {"components": 10**9}}}, "less than or equal to 10000000"),
    ({"prior": {"flow": {"transforms": 10**9}}}, "less than or equal to 1000"),
    ({"prior": {"flow": {"hidden": [10**9]}}}, "less than or equal to 10000000"),
    ({"networks": {"encoder": {"mlp": [10**9]}}}, "less than or equal to 10000000"),
    ({"latent": 10**9}, "expected a positive integer up to 10,000,000"),
    ({"cells": 10**9}, "less than or equal to 10000000"),
    ({"seeds": 10**9}, "expected a number of seeds from 1 to 10,000"),
    ({"latent": {"shape": [10**7, 10**7]}}, "need more memory than there is; choose smaller sizes"),
    ({"networks": {"encoder": {"mlp": [10**7, 10**7]}}}, "need more memory than there is; choose smaller sizes"),
]


@pytest.mark.parametrize(("content", "message"), UNBUILDABLE)
def test_what_cannot_be_built_is_refused_before_memory_is_taken(content, message):
    with pytest.raises(InputError, match=message):
        Experiment.parse({**SMALL, **content}).assemble(6, None, 10)
