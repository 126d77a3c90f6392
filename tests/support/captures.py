"""A captured program against the program itself."""

from __future__ import annotations

import pyro
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves

from pyro_vae.engine import Lifted
from pyro_vae.engine.capture.capture import capture

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


class Modules(nn.ModuleDict):
    """Modules by name, and a function that uses them, to run under other parameters."""

    def __init__(self, function, modules):
        super().__init__(modules)
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def assert_captured(function, modules, inputs, others=None, seed=5):
    """Asserts that a captured program gives at other parameters, inputs and noise what the program itself gives."""
    both = Modules(function, modules)
    wanted = [name for name, p in both.named_parameters() if p.requires_grad]
    captured = capture(function, modules, inputs, wanted)
    with torch.no_grad():
        for p in both.parameters():
            p.add_(0.1 * torch.randn_like(p))
    inputs = others or inputs
    parameters = {name: p.detach().clone() for name, p in both.named_parameters()}
    buffers = {name: b.clone() for name, b in both.named_buffers()}
    torch.manual_seed(seed)
    got = captured(parameters, buffers, inputs)
    torch.manual_seed(seed)
    with Lifted(), pyro.validation_enabled(False):
        result = function(*inputs)
    value = next(t for t in tree_leaves(result) if isinstance(t, torch.Tensor))
    named = dict(both.named_parameters())
    gradients = torch.autograd.grad(value, [named[name] for name in wanted]) if wanted else []
    tolerance = TOLERANCE[value.dtype]
    close = {"rtol": tolerance, "atol": tolerance}
    leaves, spec = tree_flatten(got.result)
    assert spec == tree_flatten(result)[1]
    for leaf, expected in zip(leaves, tree_leaves(result), strict=True):
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(leaf, expected.detach(), **close)
        else:
            assert leaf == expected
    torch.testing.assert_close(got.gradients, dict(zip(wanted, gradients, strict=True)), **close)
    after = {name: b for name, b in both.named_buffers() if not torch.equal(b, buffers[name])}
    assert after.keys() <= got.buffers.keys()
    torch.testing.assert_close(got.buffers, {name: dict(both.named_buffers())[name] for name in got.buffers}, **close)
    return captured
