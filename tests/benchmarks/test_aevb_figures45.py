"""Figures 4 and 5 are of the plane and the draws that they say, and run in miniature."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, Conditional, Fixed
from pyro_vae.datasets import load

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PYRO_VAE_DATA", ROOT / "nowhere"))
needs_data = pytest.mark.skipif(
    not ((DATA / "frey/frey_faces.npz").exists() and (DATA / "mnist").is_dir()),
    reason="MNIST and Frey Face are not in the folder PYRO_VAE_DATA",
)
loaded = functools.cache(load)  # which takes longer than runs in miniature


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(importlib.import_module("benchmarks.aevb"), "load", loaded)
    return importlib.import_module("benchmarks.aevb_figures45")


@needs_data
def test_in_miniature(figures, monkeypatch, tmp_path, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["aevb_figures45", "--quick", "--output", str(tmp_path), *arguments])
        figures.main()
        return json.loads((tmp_path / "aevb_figures45.json").read_text())

    kept = run("--panels", "mnist-2")["runs"]["mnist-2"]
    result = run("--panels", "mnist-2,frey-2,mnist-5")
    assert result["runs"]["mnist-2"] == kept
    names = ["aevb_figures45.json", "aevb_figures45_manifolds.png", "aevb_figures45_samples.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for panel, shape in (("mnist-2", (28, 28)), ("frey-2", (28, 20))):
        assert figures.unpacked(result["runs"][panel]["manifold"], shape).shape == (400, *shape)
    assert "manifold" not in result["runs"]["mnist-5"]
    assert figures.unpacked(result["runs"]["mnist-5"]["draws"], (28, 28)).shape == (100, 28, 28)
    for panel, row in result["summary"].items():
        curve = result["runs"][panel]["curve"]
        assert (row["test"], row["published_test"]) == (curve[-1]["test"], None)
        assert curve[-1]["test"] > curve[0]["test"] + 1  # it learns
    assert "frey-2" in capsys.readouterr().out


def test_the_cells_of_the_plane_have_the_same_probability(figures):
    z = figures.plane(4)
    assert z.shape == (16, 2)
    u = torch.tensor([0.125, 0.375, 0.625, 0.875]).double()
    across, down = (0.5 * (1 + torch.erf(z[:, i] / 2**0.5)).reshape(4, 4) for i in (0, 1))
    torch.testing.assert_close(across, u.expand(4, 4))
    torch.testing.assert_close(down, u.flip(0).unsqueeze(-1).expand(4, 4))


def test_pictures_are_means_of_the_likelihood(figures):
    """Of a decoder that is the identity, the sigmoid of z; at the plane's corner top right both are largest."""
    prior = Conditional(dist.Normal, (2,), loc=Fixed(0.0), scale=Fixed(1.0))
    vae = VAE(prior, Conditional(dist.Bernoulli, (2,), given=nn.Identity(), features=2, head=None), nn.Linear(2, 2))
    z = figures.plane(3)
    images = figures.pictures(vae, z)
    assert torch.equal(images, (255 * z.float().sigmoid()).round().to(torch.uint8))
    assert images.reshape(3, 3, 2)[0, 2].tolist() == [int(images.max())] * 2


def test_a_bounded_mean_is_drawn_as_it_is(figures, monkeypatch):
    aevb = importlib.import_module("benchmarks.aevb")
    if not (DATA / "frey/frey_faces.npz").exists():
        pytest.skip("Frey Face is not in the folder PYRO_VAE_DATA")
    vae = aevb.make_vae(aevb.load_data("frey"), 2, 5, 0)
    with torch.no_grad():
        mean = vae.decode(figures.plane(2).float()).mean
    assert bool(((mean > 0) & (mean < 1)).all())
    assert torch.equal(figures.pictures(vae, figures.plane(2)), (255 * mean).round().to(torch.uint8))


def test_pictures_survive_their_text_and_lie_row_by_row(figures):
    images = torch.randint(0, 256, (6 * 6, 3, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    again = figures.unpacked(figures.packed(images.flatten(1)), (3, 2))
    assert torch.equal(again, images)
    whole = figures.tiled(images, 6)
    assert whole.shape == (18, 12)
    assert torch.equal(whole[3:6, 4:6], images[6 + 2])


def test_an_unknown_panel_is_refused(figures, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aevb_figures45", "--panels", "mnist-3"])
    with pytest.raises(SystemExit):
        figures.parse()
    assert "mnist-3: not among mnist-2, frey-2" in capsys.readouterr().err
