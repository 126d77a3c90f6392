"""What the project declares about itself agrees with itself."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"pytorch": "torch"}


def _ranges(lines):
    requirements = [Requirement(line) for line in lines]
    return {CONDA_NAMES.get(r.name, r.name): str(r.specifier) for r in requirements}


def test_conda_and_pip_declare_the_same_dependencies_and_ranges():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [line for line in environment["dependencies"] if isinstance(line, str) and line != "pip"]
    declared = _ranges(conda)
    assert declared.pop("python") == PROJECT["requires-python"]
    assert declared == _ranges(PROJECT["dependencies"])


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_constraints_pin_every_dependency_inside_its_range(python):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    pins = [Requirement(line) for line in lines]
    pins = {pin.name.lower(): pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)}
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    for line in [*PROJECT["dependencies"], *extras]:
        wanted = Requirement(line)
        (pin,) = pins[wanted.name.lower()].specifier
        assert pin.operator == "==", line
        assert wanted.specifier.contains(pin.version), line


@pytest.mark.parametrize("torch", ["2.11.0", "2.13.0"])
def test_the_declared_torch_range_admits(torch):
    (declared,) = [Requirement(line) for line in PROJECT["dependencies"] if line.startswith("torch")]
    assert declared.specifier.contains(torch)


def test_pre_commit_runs_the_tools_that_make_lint_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = {hook["entry"].split()[0] for repo in config["repos"] for hook in repo["hooks"]}
    assert entries == {".venv/bin/ruff", ".venv/bin/mypy"}  # those that constraints.txt pins


def test_the_readme_names_only_targets_that_the_makefile_has():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named <= targets
