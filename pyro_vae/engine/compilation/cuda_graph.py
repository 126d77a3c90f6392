r"""A program on a CUDA device as one CUDA graph, which launches all kernels at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Replayed:
    """A program recorded as a CUDA graph, which uses fixed addresses.

    Arguments that are new with every call are copied to fixed addresses; all others must keep their addresses. The
    results are copies, which later calls do not change.

    Arguments:
        run: Function from the flat arguments to the flat results; it may change arguments in place.
        arguments: Arguments for the recording; their values are restored afterwards.
        given: Positions of the arguments that are new with every call.

    Raises:
        RuntimeError: If a kernel cannot be recorded.
    """

    def __init__(
        self, run: Callable[[list[Tensor]], Sequence[Tensor]], arguments: Sequence[Tensor], given: range
    ) -> None:
        self._given = given
        self._static = [tensor.clone() if i in given else tensor for i, tensor in enumerate(arguments)]
        before = [tensor.clone() for tensor in arguments]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # first calls do setup work that cannot be recorded
            for _ in range(3):
                run(list(self._static))
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = list(run(list(self._static)))
        for tensor, value in zip(arguments, before, strict=True):
            tensor.copy_(value)

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """Launches the graph, and returns copies of its results."""
        static, given = ([tensors[i] for i in self._given] for tensors in (self._static, arguments))
        torch._foreach_copy_(static, given)
        self._graph.replay()
        return [result.clone() for result in self._results]
