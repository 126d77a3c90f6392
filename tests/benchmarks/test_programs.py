"""The contenders of the benchmark of Pyro programs compute one loss, take the same steps, and are compared by turns."""

from __future__ import annotations

import json
import sys

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from benchmarks import programs
from benchmarks.program_models import PROGRAMS, Written, written
from pyro_vae import Program, Training, fit
from pyro_vae.inference import AEVB
from pyro_vae.runtime.random_streams import isolated

ROWS, BATCH = 120, 20


def loss_of(program: Written, batch) -> float:
    """Pyro's loss at one noise, beside the param store."""
    with pyro.get_param_store().scope({"params": {}, "constraints": {}}), isolated(1):
        return Trace_ELBO().loss(program.model, program.guide, batch)


def contenders(name, *names):
    return {each: programs.CONTENDERS[each](name, ROWS, BATCH) for each in names or programs.CONTENDERS}


def check_steps(name, taking_part):
    losses = programs.compared(taking_part, written(name, ROWS), BATCH)
    for mine in losses.values():
        assert mine == pytest.approx(losses["pyro"], rel=1e-5)
    for contender in taking_part.values():
        contender.steps(8)
        with isolated(0, "noise"):
            assert contender.loss_and_step(written(name, ROWS).rows(slice(0, BATCH))) < losses["pyro"][0]
    assert not dict(pyro.get_param_store())


@pytest.mark.parametrize("name", PROGRAMS)
def test_contenders_take_the_same_steps(name):
    check_steps(name, contenders(name, "pyro", "pyro-validated", "eager"))


@pytest.mark.parametrize(
    "name", [name if name == "factors" else pytest.param(name, marks=pytest.mark.slow) for name in PROGRAMS]
)
def test_the_captured_program_takes_the_same_steps(name):
    taking_part = contenders(name, "pyro", "compiled")
    check_steps(name, taking_part)
    (member,) = taking_part["compiled"].loop.members
    assert taking_part["compiled"].loop.execution(member)[0].startswith("compiled in")


def test_another_loss_is_refused():
    taking_part = contenders("modalities", "pyro", "eager")
    with torch.no_grad():
        next(taking_part["eager"].model.parameters()).add_(0.1)
    with pytest.raises(SystemExit, match="eager has a loss of"):
        programs.compared(taking_part, written("modalities", ROWS), BATCH)


def test_each_call_has_the_same_weights_and_data():
    first, second = written("counts", ROWS), written("counts", ROWS)
    assert all(torch.equal(first.data[key], second.data[key]) for key in first.data)
    batch = first.rows(slice(0, BATCH))
    assert loss_of(first, batch) == loss_of(second, batch)


def test_cells_behind_the_end_of_a_sequence_do_not_count():
    program = written("markov", ROWS)
    batch = program.rows(slice(0, BATCH))
    behind = ~batch["mask"][..., None]
    assert bool(behind.any())
    other = {"x": torch.where(behind, 1 - batch["x"], batch["x"]), "mask": batch["mask"]}
    assert not torch.equal(other["x"], batch["x"])
    assert loss_of(program, other) == loss_of(program, batch)


def test_the_latents_of_a_part_of_the_data_are_scaled():
    whole = written("factors", ROWS, subsampled=True)
    half = written("factors", ROWS, subsampled=False)
    batch = whole.rows(slice(None))  # a batch of all rows has a scale of 1
    assert loss_of(whole, batch) == loss_of(half, batch)
    batch = whole.rows(slice(0, BATCH))
    assert loss_of(whole, batch) > 2 * loss_of(half, batch)


def test_an_epoch_has_each_datum_once():
    contender = programs.PyroSVI(written("vae", ROWS), BATCH)
    for _ in range(2):
        seen = torch.cat([next(contender.minibatches) for _ in range(ROWS // BATCH)])
        assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, contender.program.data.tolist()))


def test_ours_takes_the_steps_of_fit():
    contender = programs.Ours(written("modalities", ROWS), BATCH, compile=False)
    with isolated(0, "training"):
        contender.steps(7)
    again = written("modalities", ROWS)
    model = Program(again.model, again.guide, again.rows(slice(0, 3)))
    training = Training(optimizer=contender._adam, steps=7, batch_size=BATCH, compile=False)
    history = fit(model, again.data, AEVB(), training, seed=0)
    assert contender.loop.members[0].records.bounds == history.bound.tolist()


def test_the_command(monkeypatch, tmp_path, capsys):
    chosen = ["--programs", "factors", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["programs", "--quick", *chosen])
    programs.main()
    result = json.loads((tmp_path / "programs.json").read_text())
    run = result["runs"]["factors"]["contenders"]
    assert run["pyro"]["over_pyro"]["median"] == 1.0
    pairs = zip(run["compiled"]["seconds"], run["pyro"]["seconds"], strict=True)
    assert run["compiled"]["over_pyro"]["max"] == max(mine / its for mine, its in pairs)
    assert run["compiled"]["compile_seconds"] > 0 == run["eager"]["compile_seconds"]
    out = capsys.readouterr().out
    assert "factors: 1 of 1" in out
    assert result["table"][-1] in out
    monkeypatch.setattr(sys, "argv", ["programs", "--table", *chosen])
    programs.main()
    assert capsys.readouterr().out.splitlines() == result["table"]


def test_the_table_has_medians_and_quartiles():
    value = {"median": 0.5, "lower_quartile": 0.25, "upper_quartile": 0.75}
    mine = {"over_pyro": value, "milliseconds": value, "compile_seconds": 12.4}
    run = {"contenders": dict.fromkeys(("pyro", "pyro-validated", "eager", "compiled"), mine)}
    *_, line = programs.table({"vae": run}).splitlines()
    assert line == f"| `vae` |{' 0.50 (0.25 to 0.75) |' * 4} 12 |"


def test_a_run_that_stops_says_why():
    contender = programs.Ours(written("modalities", ROWS), BATCH, compile=False)
    nn.init.constant_(next(contender.model.parameters()), float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        contender.steps(1)
