"""What a program computes once."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.engine.capture.graph import traced
from pyro_vae.engine.compilation.backend import compile_graph
from pyro_vae.engine.compilation.computed_once import computed_once


@pytest.mark.machine_code
def test_it_is_the_value_compiled_and_uncompiled_alone_and_in_replicates() -> None:
    x, step = torch.linspace(-1, 1, 50), torch.tensor(3.0, dtype=torch.float64)

    def program(x: torch.Tensor, step: torch.Tensor) -> list[torch.Tensor]:
        return [x * computed_once((1 - 0.9**step).to(x.dtype)), x * computed_once(step > 2)]

    expected = [x * (1 - 0.9**3), x]
    torch.testing.assert_close(program(x, step), expected)
    graph = traced(program, [x, step])
    torch.testing.assert_close(list(compile_graph(graph, [x, step]).run([x, step])), expected)
    many, steps = torch.stack([x, 2 * x]), torch.tensor([3.0, 1.0], dtype=torch.float64)
    scaled, kept = torch.vmap(program)(many, steps)
    torch.testing.assert_close(scaled, torch.stack([expected[0], 2 * x * (1 - 0.9)]))
    torch.testing.assert_close(kept, torch.stack([x, 0 * x]))
