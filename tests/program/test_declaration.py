"""Programs that do not fit are refused at construction; each message names the site and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae import Batch
from pyro_vae.errors import InputError
from pyro_vae.program import Program

X = torch.tensor([-1.0, 0.5, 3.0])


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 0.7))


def test_the_right_one_is_taken() -> None:
    program = Program(model, guide, X)
    assert [site.name for site in program.sites] == ["z"]
    assert repr(program).startswith("Program(\n  sites=(z), latent_shape=(1,), plate='data', size=None")


def global_site(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of_a_global(x: Tensor) -> None:
    pyro.sample("loc", dist.Normal(torch.tensor(0.0), 1.0))
    guide(x)


def observed_outside(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x.sum())


def no_plate(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def other_name(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def loop(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{i}", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])


def fixed_size(x: Tensor) -> None:
    with pyro.plate("data", 1):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:1])


def more_sites(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 0.7))
        pyro.sample("y", dist.Normal(0.5 * x, 0.7))


def of_the_observed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 0.7))
        pyro.sample("x", dist.Normal(0.5 * x, 0.7))


def no_sites(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("zz", dist.Normal(0.5 * x, 0.7))


def two_cells(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1).expand(-1, 2), 0.7).to_event(1))


def positive(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(torch.tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def undeclared_dimension(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(4, 1), 1.0))
        pyro.sample("x", dist.Normal(z.sum(-2), 1.0), obs=x)


def undeclared_in_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(4, 1), 1.0))


def enumerated(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x)


def enumerated_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})


def nothing_observed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))


def nothing_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0), obs=x)


def empty(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0), obs=x)


def two_arguments(x: Tensor, y: Tensor) -> None:
    guide(x)


def failing(x: Tensor) -> None:
    guide(x.reshape(7))


def other_dim(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(0.5 * x.unsqueeze(-1), 0.7))


def auxiliary(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 0.7), infer={"is_auxiliary": True})


@pytest.mark.parametrize(
    ("wrong_model", "wrong_guide", "message"),
    [
        (global_site, guide_of_a_global, "the site `loc` lies outside the plate `data`.*pass size=N"),
        (observed_outside, guide, "the observed site `x` of the model lies outside the plate `data`"),
        (
            no_plate,
            guide,
            r"the model has no plate `data` with a site in it; put its sites into `with pyro",
        ),
        (other_name, guide, "no plate `data`.*its plates are `rows`; pass plate=, the name of the one over data"),
        (loop, loop, "the model loops over the plate `data`, one datum at a time; use `with pyro.plate"),
        (fixed_size, guide, "the plate `data` of the model has 1 rows, and the example 3.*such as len"),
        (model, more_sites, "the guide draws `y`, which is no site of the model; leave it out; "),
        (model, of_the_observed, "the guide draws `x`, which is observed in the model; leave it out"),
        (model, no_sites, "the guide draws `zz`, which is no site of the model; leave it out; did you mean `z`"),
        (positive, guide, r"the guide draws `z` from Real\(\), and the model's support is GreaterThan"),
        (model, two_cells, r"`z` has plates .* event \(\) in the model, and .* event \(2,\) in the guide"),
        (
            undeclared_dimension,
            undeclared_in_guide,
            r"`z` .* batch dimension of size 4 at -2.*no plate.*\.to_event\(2\)",
        ),
        (enumerated, enumerated_guide, "the guide marks the site `z` by infer={'enumerate'.*use score-function, rws"),
        (nothing_observed, guide, "the model observes nothing; pass obs="),
        (nothing_latent, guide, "the guide draws `z`, which is no site of the model"),
        (nothing_latent, empty, "no latent site inside the plate; draw at least one by pyro.sample without obs="),
        (model, empty, "the model draws `z`, and the guide does not; draw it in the guide"),
        (model, two_arguments, "the guide fails on the example: TypeError.*one argument, the batch"),
        (model, failing, r"the guide fails on the example: RuntimeError: shape '\[7\]' is invalid"),
        (model, other_dim, "plate `data` is at dim -1 in the model and at -2 in the guide; give both the same dim="),
        (model, auxiliary, "site `z` is auxiliary"),
        ("model", guide, "`model` is a function or a module of one argument, the batch; got `'model'`"),
        (nn.Linear, guide, "`model` is a function or a module of one argument"),
    ],
)
def test_what_cannot_work_is_refused(
    wrong_model: Callable[..., Any], wrong_guide: Callable[..., Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"Program: .*{message}"):
        Program(wrong_model, wrong_guide, X)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (X[:1], "a batch of at least two data, got one"),
        (torch.tensor(1.0), r"got tensors of shapes \(\)"),
        ({"x": X, "y": X[:2]}, r"one first dimension; got tensors of shapes \(3,\), \(2,\)"),
        ({}, "got tensors of shapes none"),
        ("data", "`example` is a Tensor"),
        ({"x": "a"}, "`x` is a Tensor, an ndarray or a DataFrame; got `str`"),
    ],
)
def test_examples_that_are_no_batch_are_refused(example: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Program(model, guide, example)


def of_mapping(batch: dict[str, Tensor]) -> None:
    model(batch["x"])


def guide_of_mapping(batch: dict[str, Tensor]) -> None:
    guide(batch["x"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, "`x` has the form of the example, a mapping; got `Tensor`"),
        ({"x": X}, "has the keys 'x'; expected those of the example, 'x', 'n'"),
        ({"x": X.unsqueeze(-1), "n": X}, r"a tensor of `x` has shape \(3, 1\); expected \(B, \) with B >= 1"),
        ({"x": X[:0], "n": X[:0]}, "with B >= 1"),
    ],
)
def test_data_of_another_form_are_refused(data: Any, message: str) -> None:
    program = Program(of_mapping, guide_of_mapping, {"x": X, "n": torch.arange(3)})
    assert program.check({"n": X, "x": X.double()}).x["n"].dtype == torch.int64
    with pytest.raises(InputError, match=message):
        program.check(data)


def test_a_batch_goes_to_the_program_as_it_is() -> None:
    def of_batch(batch: Batch) -> None:
        assert batch.context is not None
        model(batch.x + batch.context[:, 0])

    def guide_of_batch(batch: Batch) -> None:
        guide(batch.x)

    program = Program(of_batch, guide_of_batch, Batch(X, context=torch.ones(3, 1)))
    assert program.log_weights(Batch(X, context=torch.zeros(3, 1))).shape == (1, 3)
    with pytest.raises(InputError, match="has the structure x, and the example another one"):
        program.check(Batch(X))


def test_trainable_tensors_that_nobody_registers_are_refused() -> None:
    weight = torch.tensor(0.5, requires_grad=True)

    def hidden(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight * x, 0.7))

    with pytest.raises(InputError, match=r"a trainable tensor of shape \(\).*pyro.module.*pyro.param"):
        Program(model, hidden, X)


def test_a_parameter_that_appears_later_is_refused() -> None:
    calls = []

    def growing(x: Tensor) -> None:
        calls.append(1)
        weight = pyro.param(f"weight_{len(calls) > 12}", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight * x, 0.7))

    program = Program(model, growing, X)
    calls.extend(range(13))
    with pytest.raises(InputError, match="the parameter `weight_True` was not there when the program ran"):
        program.log_weights(X)


def test_data_without_a_finite_density_are_named() -> None:
    def counts(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)

    program = Program(counts, guide, torch.tensor([0.0, 3.0]))
    check = program.value_check(check_support=True)
    check(program.check(torch.tensor([1.0, 2.0])), "the data")
    for bad in (float("nan"), -1.0):
        with pytest.raises(InputError, match=r"the data: .*row 2 \(from 0\)"):
            check(program.check(torch.tensor([1.0, 2.0, bad])), "the data")


def test_a_site_inside_the_plate_in_one_half_alone_is_refused() -> None:
    def one_for_all(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(0.5 * x, 0.7))

    def two(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z, y = (pyro.sample(name, dist.Normal(torch.tensor(0.0), 1.0)) for name in ("z", "y"))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    with pytest.raises(InputError, match="`z` lies inside the plate `data` in the model, and outside in the guide"):
        Program(two, one_for_all, X, size=3)


def test_the_example_changes_no_batch_statistics_and_no_mode() -> None:
    network = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def normalised(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(network(x.unsqueeze(-1)).squeeze(-1), 0.7))

    Program(model, normalised, X)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(part.training for part in network.modules())
