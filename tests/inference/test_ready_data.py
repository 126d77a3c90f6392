"""Data are checked and converted once, where they come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from algorithm_cases import data, made, small_vae

from pyro_vae import VAE, Batch
from pyro_vae.errors import InputError
from pyro_vae.evaluation import elbo, log_marginal
from pyro_vae.inference import ALGORITHMS, IWAE, Inference, Loss
from pyro_vae.vae import vae as module

ONE_LOSS = [name for name, algorithm in ALGORITHMS.items() if algorithm.loss_of is not Inference.loss_of]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The data that were checked."""
    seen: list[Any] = []
    ready = module.ready
    monkeypatch.setattr(module, "ready", lambda vae, data: (seen.append(data), ready(vae, data))[1])
    return seen


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_of_an_algorithm_checks_its_data_once(name: str, checks: list[Any]) -> None:
    inference, vae, batch = made(name), small_vae(name), data(name)
    inference.check(vae)
    checks.clear()
    losses = list(inference.losses(vae, batch))
    assert len(losses) == len(inference.phases)
    assert [each is batch for each in checks] == [True]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_data_of_another_type_give_the_losses_of_the_same_data_in_the_models(name: str) -> None:
    def values(batch: Batch) -> list[float]:
        torch.manual_seed(0)
        inference = made(name)
        return [loss.value.item() for loss in inference.losses(small_vae(name), batch)]

    assert values(data(name)._replace(x=data(name).x.to(torch.uint8))) == values(data(name))


@pytest.mark.parametrize("name", ONE_LOSS)
def test_a_loss_takes_data_in_any_form_and_refuses_those_that_do_not_fit(name: str) -> None:
    def value(given: Any) -> float:
        torch.manual_seed(0)
        return made(name).loss(small_vae(name), given).value.item()

    batch = data(name)
    arrays = Batch(*(None if field is None else field.numpy().astype(np.float64) for field in batch))
    assert value(arrays) == value(batch)
    if name != "m2":  # which needs labels
        assert value(batch.x.numpy()) == value(batch.x) == value(batch)
    with pytest.raises(InputError, match=r"^VAE: expected data of shape \(B, 6\) with B >= 1, got \(4, 5\)"):
        made(name).loss(small_vae(name), np.zeros((4, 5)))


def test_algorithms_of_several_losses_have_no_single_one() -> None:
    for name in set(ALGORITHMS) - set(ONE_LOSS):
        with pytest.raises(NotImplementedError, match="implements neither `loss_of` nor `phases`"):
            made(name).loss(small_vae(name), data(name))


def test_an_algorithm_that_overrides_loss_is_given_ready_batches(checks: list[Any]) -> None:
    class Own(Inference):
        def loss(self, vae: VAE, batch: Batch) -> Loss:  # type: ignore[override]
            assert isinstance(batch, Batch)
            assert batch.x.dtype == torch.float32
            return IWAE(2).loss_of(vae, batch)

    (loss,) = Own().losses(small_vae("iwae"), np.ones((3, 6), dtype=np.int64))
    assert loss.value.requires_grad
    assert len(checks) == 1


CALLS: dict[str, Callable[[VAE, Any], Any]] = {
    "encode": lambda vae, x: vae.encode(x).mean,
    "log_likelihood": lambda vae, x: vae.log_likelihood(torch.zeros(10, 2), x),
    "log_joint": lambda vae, x: vae.log_joint(torch.zeros(10, 2), x),
    "log_weights": lambda vae, x: vae.log_weights(x, 3),
    "reconstruct": lambda vae, x: vae.reconstruct(x, 2),
    "model": lambda vae, x: vae.model(x),
    "guide": lambda vae, x: vae.guide(x),
    "programs.model": lambda vae, x: vae.programs.model(x),
    "programs.guide": lambda vae, x: vae.programs.guide(x),
    "elbo": lambda vae, x: elbo(vae, x, 3).pointwise,
    "log_marginal": lambda vae, x: log_marginal(vae, x, 30).pointwise,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_a_user_calls_checks_its_data_once(call: Callable[[VAE, Any], Any], checks: list[Any]) -> None:
    vae, x = small_vae("aevb"), data("aevb").x
    results = []
    for given in (x, x.numpy(), x.to(torch.uint8), x.double()):
        torch.manual_seed(0)
        results.append(call(vae, given))
        assert len(checks) == 1
        checks.clear()
    assert all(torch.equal(result, results[0]) for result in results)
    with pytest.raises(InputError, match=r"^VAE: expected data of shape \(B, 6\) with B >= 1, got \(10, 5\)"):
        call(vae, x[:, :5])
