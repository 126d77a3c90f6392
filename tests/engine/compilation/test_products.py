"""Products by the faster library: which are taken over, and that they are the same products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.engine.compilation import products
from pyro_vae.engine.compilation.products import product, use_faster_products

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a build of torch without oneDNN")
A, B = (torch.rand(*shape, generator=torch.Generator().manual_seed(0)) - 0.5 for shape in ((100, 300), (300, 200)))


def targets(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@needs_onednn
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_a_product_is_the_product_whatever_the_strides(transposed: tuple[bool, bool]) -> None:
    a, b = (t.t().contiguous().t() if flip else t for t, flip in zip((A, B), transposed, strict=True))
    bias = torch.arange(200.0)
    exact = a.double() @ b.double()
    torch.testing.assert_close(product(a, b).double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(a, b, bias).double(), exact + bias, rtol=1e-5, atol=1e-5)
    assert product(a, b).is_contiguous()


@needs_onednn
def test_large_products_in_float32_are_taken_over_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)

    def program(a: Tensor, b: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.mm(a, b), torch.addmm(bias, a, b), torch.mm(a[:5], b)

    for dtype in (torch.float32, torch.float64):
        arguments = [A.to(dtype), B.to(dtype), torch.ones(200, dtype=dtype)]
        graph = make_fx(program)(*arguments)
        expected, before = graph(*arguments), targets(graph)
        use_faster_products(graph)
        taken = sum("product" in name for name in targets(graph))
        assert taken == (2 if dtype == torch.float32 else 0)  # the third is too small
        assert len(targets(graph)) == len(before)
        torch.testing.assert_close(graph(*arguments), expected, rtol=1e-5, atol=1e-5)


def test_nothing_changes_where_it_is_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    graph = make_fx(torch.mm)(A, B)
    before = graph.code
    use_faster_products(graph)
    assert graph.code == before


def test_which_is_faster_is_timed_once_and_a_build_without_onednn_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    products.onednn_is_faster.cache_clear()
    slow = iter([3.0, 1.0])
    monkeypatch.setattr(products, "_seconds", lambda run: next(slow))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert products.onednn_is_faster()
    assert products.onednn_is_faster()
    products.onednn_is_faster.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not products.onednn_is_faster()
    products.onednn_is_faster.cache_clear()
