"""The package is light to import, and its names are there when they are asked for."""

from __future__ import annotations

import ast
import pickle
import pydoc
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pyro_vae

ROOT = Path(__file__).parents[2]

ROOMS = {
    "datasets",
    "distributions",
    "engine",
    "evaluation",
    "experiment",
    "inference",
    "networks",
    "plots",
    "training",
}


def fresh(code, *arguments):
    """Runs code in a process of its own; returns its standard output."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = {"pandas", "matplotlib", "sklearn", "arviz", "pydantic", "xarray", "scipy", "rich"}
LIBRARIES = HEAVY | {"torch", "pyro", "numpy"}
COMMANDS = """
import sys
from pyro_vae.cli import main
for arguments in (["--help"], ["--version"], ["compare", "--help"], ["score", "--help"]):
    sys.argv = ["pyro-vae", *arguments]
    try: main()
    except SystemExit: pass
"""


@pytest.mark.parametrize(
    "steps",
    [
        [("import pyro_vae", LIBRARIES), ("dir(pyro_vae)", LIBRARIES)],
        [("import pyro_vae.errors", LIBRARIES)],
        [("import pyro_vae.cli", LIBRARIES)],
        [
            ("from pyro_vae import VAE, fit", HEAVY | {"zuko"}),
            ("import pyro_vae; pyro_vae.inference, pyro_vae.networks, pyro_vae.engine, pyro_vae.evaluation", HEAVY),
            ("import pyro_vae; pyro_vae.plots.plot_curves", HEAVY),
            ("from pyro_vae import to_arviz", HEAVY),
        ],
        [(COMMANDS, LIBRARIES - {"rich", "pydantic"})],  # typer needs these two
    ],
    ids=["package", "errors", "cli", "names", "commands"],
)
def test_what_is_not_needed_is_not_imported(steps):
    """Not after any of the steps, which one process takes in turn."""
    said = fresh("import sys\n" + "\n".join(f"{code}\nprint('LOADED', *sys.modules)" for code, _ in steps))
    lists = [line.split() for line in said.splitlines() if line.startswith("LOADED")]
    for loaded, (code, unwanted) in zip(lists, steps, strict=True):
        assert "pyro_vae" in loaded
        assert sorted(unwanted & set(loaded)) == [], code


def test_the_public_names_are_these_and_no_others():
    names = fresh("import pyro_vae; print(*dir(pyro_vae))").split()
    assert names == sorted({*pyro_vae.__all__, *ROOMS})
    assert {"VAE", "Conditional", "fit", "load", "TrainedVAE", "compare", "Experiment", "mlp"} < set(names)
    assert dir(pyro_vae) == names  # also where much is loaded


def test_type_checkers_read_the_same_names_from_the_same_files():
    tree = ast.parse((ROOT / "pyro_vae" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    found = {}
    for node in block.body:
        (alias,) = node.names
        assert alias.asname == alias.name  # which exports it
        found[alias.name] = f"{node.module}.{alias.name}" if alias.name in ROOMS else node.module
    files = {name: f"pyro_vae.{file}" for name, file in pyro_vae._FILES.items()}
    assert found == files | {room: f"pyro_vae.{room}" for room in ROOMS}


def test_each_name_is_what_its_file_defines():
    for name, file in pyro_vae._FILES.items():
        defined = getattr(import_module(f"pyro_vae.{file}"), name)
        assert getattr(pyro_vae, name) is defined
        assert defined.__module__ == f"pyro_vae.{file}"  # not one that the file imports itself


def test_rooms_are_there_after_the_import_alone():
    code = """
import sys, pyro_vae
print(pyro_vae.inference.AEVB.__name__)
for room in sys.argv[1:]: print(getattr(pyro_vae, room).__name__)
"""
    assert fresh(code, *sorted(ROOMS)).split() == ["AEVB", *(f"pyro_vae.{room}" for room in sorted(ROOMS))]


def test_every_kind_of_import_works():
    names = {}
    exec("from pyro_vae import *", names)
    assert set(pyro_vae.__all__) <= set(names)
    assert names["fit"] is pyro_vae.fit
    exec("from pyro_vae import cli, inference, load as read", names)  # rooms, also those that are no public name
    assert names["inference"] is pyro_vae.inference
    assert names["cli"].__name__ == "pyro_vae.cli"
    assert names["read"] is pyro_vae.load


def test_a_name_that_is_not_there_is_an_error():
    with pytest.raises(AttributeError, match="module `pyro_vae` has no attribute `fitt`"):
        pyro_vae.fitt  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Vae'"):
        exec("from pyro_vae import Vae")
    assert not hasattr(pyro_vae, "__version__")


VAE = """
import pyro.distributions as dist
from pyro_vae import VAE, Conditional, Fixed, mlp
vae = VAE(
    Conditional(dist.LogNormal, (2,), loc=Fixed(0.0), scale=Fixed(1.0)),
    Conditional(dist.Bernoulli, (6,), given=mlp(2, 3)),
)
"""


def test_what_is_pickled_comes_back_in_a_process_that_has_imported_nothing(tmp_path):
    path, names = tmp_path / "vae.pickle", {}
    exec(VAE, names)
    path.write_bytes(pickle.dumps(names["vae"]))
    read = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).extra_repr())"
    assert fresh(read, str(path)) == "latent_shape=(2,), event_shape=(6,), size=None\n"
    for name in ("fit", "VAE", "load"):
        public = getattr(pyro_vae, name)
        assert pickle.loads(pickle.dumps(public)) is public


def test_what_a_vae_needs_is_registered_with_it():
    """The closed forms for which Pyro's TraceMeanField_ELBO asks torch; without them it draws, and says nothing."""
    code = f"""{VAE}
import torch
from torch.distributions import kl_divergence
x = torch.zeros(3, 6)
print(kl_divergence(vae.encode(x), vae.prior_given(None).expand((3,))).shape)
q = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
print(float(kl_divergence(q, dist.Normal(torch.zeros(2), 1.0).to_event(1))))
"""
    assert fresh(code) == "torch.Size([3])\n0.0\n"


def test_help_tells_all_of_it():
    text = pydoc.plain(pydoc.render_doc(pyro_vae))
    assert "Variational autoencoders, declared once in Pyro" in text
    for name in ("class VAE(", "class TrainedVAE(", "fit(", "load("):
        assert name in text


USER = """
import pyro_vae
from pyro_vae import VAE, inference
from pyro_vae import *

algorithm: pyro_vae.inference.AEVB = inference.AEVB()
vae: VAE = pyro_vae.load("runs/digits").vae
count: int = pyro_vae.load("runs/digits")
reveal_type(mlp)
pyro_vae.fitt
from pyro_vae import Vae
"""


@pytest.mark.slow
def test_a_type_checker_sees_the_names_and_no_others(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    options = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path / 'cache'}"]
    command = [sys.executable, "-m", "mypy", *options, str(tmp_path / "user.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(str(tmp_path))]
    assert [line.split(":")[1] for line in lines] == ["8", "9", "10", "11"], done.stdout + done.stderr
    assert 'expression has type "TrainedVAE", variable has type "int"' in lines[0]
    assert "pyro_vae.networks.mlp.MLP" in lines[1]
    assert "fitt" in lines[2]
    assert "Vae" in lines[3]
