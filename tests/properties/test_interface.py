"""One body over all inference algorithms: what `fit`, experiment files and users may rely on."""

from __future__ import annotations

import copy
import inspect

import pyro
import pytest
import torch
from algorithm_cases import data, made, small_vae
from fitting import fit_with
from torch import Tensor

from pyro_vae import VAE, Batch
from pyro_vae import inference as module
from pyro_vae.errors import InputError
from pyro_vae.inference import ALGORITHMS, Inference, Loss, algorithm

pytestmark = pytest.mark.parametrize("name", ALGORITHMS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def seeded_losses(inference: Inference, vae: VAE, x: Tensor | Batch, seed: int = 0) -> list[Loss]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return list(copy.deepcopy(inference).losses(vae, x))  # from the same state each time


def values(losses: list[Loss]) -> list[float | None]:
    return [None if t is None else t.item() for loss in losses for t in (loss.value.detach(), loss.bound)]


def trained(name: str, vae: VAE, steps: int = 3) -> dict[str, Tensor]:
    """Parameters after a few steps of `fit`."""
    optimizer = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "steps": steps, "batch_size": 5}
    fit_with(vae, data(name, vae.dtype), made(name), **optimizer)
    return {n: p.detach().clone() for n, p in vae.named_parameters()}


def moved_by(name: str) -> set[str]:
    """The VAE's parameters that some phase moves."""
    inference, vae = made(name), small_vae(name)
    inference.check(vae)
    moved = {n for phase in inference.phases for n in inference.moved(vae, phase)}
    return {n for n, _ in vae.named_parameters()} & moved


@DTYPES
def test_losses_are_finite_scalars_of_the_models_type_and_bounds_are_detached(name: str, dtype: torch.dtype) -> None:
    inference = made(name)  # in float32, as `fit` takes it
    losses = seeded_losses(inference, small_vae(name, dtype=dtype), data(name, dtype))
    assert len(losses) == len(inference.phases)
    for loss in losses:
        assert isinstance(loss, Loss)
        assert loss.value.requires_grad
        for t in loss:
            assert t is None or (t.shape == () and t.dtype == dtype and bool(t.detach().isfinite()))
        assert loss.bound is None or not loss.bound.requires_grad


@DTYPES
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name: str, dtype: torch.dtype) -> None:
    inference, vae, x = made(name), small_vae(name, dtype=dtype), data(name, dtype)
    first = values(seeded_losses(inference, vae, x))
    assert values(seeded_losses(inference, vae, x if name == "m2" else x.x)) == first
    if name not in ("enumeration", "autoencoder"):  # which draw nothing
        assert values(seeded_losses(inference, vae, x, seed=1)) != first


def test_backward_of_a_phase_reaches_exactly_the_parameters_that_it_moves(name: str) -> None:
    inference, vae = made(name), small_vae(name)
    assert (len(vae.theta), len(vae.phi)) == (5, 4)
    inference.check(vae)
    both = {**dict(vae.named_parameters()), **{f"inference.{n}": p for n, p in inference.named_parameters()}}
    for phase, loss in zip(inference.phases, inference.losses(vae, data(name)), strict=True):
        for p in both.values():
            p.grad = None
        loss.value.backward()
        assert {n for n, p in both.items() if p.grad is not None and bool(p.grad.any())} == set(
            inference.moved(vae, phase)
        )
        for group in phase.moves & {"theta", "phi"}:
            assert set(getattr(vae, group)) <= set(inference.moved(vae, phase))


def test_what_it_leaves_alone_is_what_it_declares(name: str) -> None:
    inference, vae = made(name), small_vae(name)
    inference.check(vae)
    moved = {n for phase in inference.phases for n in inference.moved(vae, phase)}
    left = {n for n, _ in vae.named_parameters() if n not in moved}
    assert {n.partition(".")[0] for n in left} <= ({"posterior"} if not inference.trains_posterior else set()) | (
        {"prior"} if not inference.trains_prior else set()
    )


@pytest.mark.parametrize("frozen", ["likelihood.head", "prior likelihood", "posterior"])
def test_frozen_parameters_stay_and_all_others_move(name: str, frozen: str) -> None:
    vae = small_vae(name)
    for part in frozen.split():
        vae.get_submodule(part).requires_grad_(False)
    before, after = dict(small_vae(name).named_parameters()), trained(name, vae)
    unmoved = {n for n in before if torch.equal(before[n], after[n])}
    left = set(before) - moved_by(name)
    assert unmoved == {n for n in before if n.startswith(tuple(frozen.split()))} | left


def test_its_declarations_are_true(name: str) -> None:
    inference, vae = made(name), small_vae(name)
    assert inference.name == name
    assert isinstance(inference, Inference)
    assert getattr(module, type(inference).__name__) is type(inference)
    assert inference.has_bound is any(loss.bound is not None for loss in inference.losses(vae, data(name)))
    assert any("phi" in phase.moves for phase in inference.phases) or not inference.trains_posterior
    after = trained(name, vae)
    assert {n for n, p in small_vae(name).named_parameters() if not torch.equal(p, after[n])} == moved_by(name)


def test_two_instances_side_by_side_train_as_each_alone(name: str) -> None:
    """Step after step in turn, a deep copy among them."""

    def train(vaes: list[VAE]) -> list[dict[str, Tensor]]:
        inferences = [made(name) for _ in vaes]
        optimizers = [torch.optim.SGD(vae.parameters(), lr=0.1) for vae in vaes]
        for step in range(3):
            for vae, inference, optimizer in zip(vaes, inferences, optimizers, strict=True):
                torch.manual_seed(step)
                for loss in inference.losses(vae, data(name)):
                    optimizer.zero_grad()
                    loss.value.backward()
                    optimizer.step()
        return [{n: p.detach() for n, p in vae.named_parameters()} for vae in vaes]

    original, copied, other = small_vae(name), copy.deepcopy(small_vae(name)), small_vae(name, seed=1)
    (alone,), (together, its_copy, another) = train([small_vae(name)]), train([original, copied, other])
    for n, value in alone.items():
        assert torch.equal(together[n], value)
        assert torch.equal(its_copy[n], value)
        assert not torch.equal(another[n], value) or n not in moved_by(name)


def test_state_repr_and_deep_copy_reproduce_the_algorithm(name: str) -> None:
    signature = inspect.signature(algorithm(name))
    options = {"num_particles": 3} if "num_particles" in signature.parameters else {}
    original, vae = algorithm(name)(**options), small_vae(name)
    restored = algorithm(name)(**options)
    restored.load_state_dict(original.state_dict(), strict=True)
    from_repr = eval(repr(original), vars(module))
    expected = values(seeded_losses(original, vae, data(name)))
    for other in (restored, from_repr, copy.deepcopy(original)):
        assert repr(other) == repr(original)
        assert values(seeded_losses(other, copy.deepcopy(vae), data(name))) == expected


def test_losses_leave_the_param_store_and_the_modules_modes_alone(name: str) -> None:
    store, vae = pyro.get_param_store(), small_vae(name).eval()
    before = set(store.keys())
    seeded_losses(made(name), vae, data(name))
    assert set(store.keys()) == before
    assert not any(child.training for child in vae.modules())


def test_its_docstring_cites_its_source_and_its_constructor_refuses_what_makes_no_sense(name: str) -> None:
    assert "Reference: " in inspect.getdoc(algorithm(name))
    if "num_particles" in inspect.signature(algorithm(name)).parameters:
        for bad in (0, -1, 1.5, "3"):
            with pytest.raises(
                InputError, match=rf"^{algorithm(name).__name__}: `num_particles` is a positive integer"
            ):
                algorithm(name)(num_particles=bad)


def test_its_short_name_is_found_and_a_misspelt_one_is_corrected(name: str) -> None:
    assert algorithm(name) is ALGORITHMS[name]
    with pytest.raises(InputError, match=rf"unknown inference algorithm `{name}s`; did you mean `{name}`"):
        algorithm(name + "s")
