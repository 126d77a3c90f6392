"""Compiling: what a compiled program is known by, and what happens where compiling fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from algorithm_cases import data, small_vae
from fitting import fit_with
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._filelock import FileLock

from pyro_vae.engine import CompilationError, Ledger, Step, interpreted
from pyro_vae.engine.capture.capture import capture
from pyro_vae.engine.capture.graph import fingerprint, lift_constants
from pyro_vae.engine.compilation import backend
from pyro_vae.engine.compilation.compiler_cache import remove_unfinished
from pyro_vae.inference import AEVB

X = torch.ones(3)
pytestmark = pytest.mark.machine_code


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    """A process that has compiled nothing, with an empty cache."""
    monkeypatch.setattr(backend, "_compiled", {})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))


def graph_of(function, *inputs):
    return make_fx(function)(*(inputs or (X,)))


@pytest.fixture
def stub(monkeypatch):
    """Compiles nothing, but does what compiling does to the cache; returns the entry's path."""
    compiled = []

    def inductor(graph, arguments):
        compiled.append(graph)
        return (lambda flat: graph(*flat)), "fabc"

    monkeypatch.setattr(backend, "_inductor", inductor)
    return compiled


# ------------------------------------------------------------------ what a program is known by


def test_a_fingerprint_tells_everything_but_the_tensors_that_a_graph_holds():
    held, other = torch.ones(3), torch.full((3,), 2.0)

    def times(constant):
        return graph_of(lambda x: x * constant)

    graphs = [times(held), times(other)]
    constants = [lift_constants(graph) for graph in graphs]
    assert torch.equal(constants[1][0], other)
    assert len({fingerprint(g, [X, *c]) for g, c in zip(graphs, constants, strict=True)}) == 1
    different = [
        lambda x: x * 0.1,
        lambda x: x * 0.10000000000000002,
        lambda x: x * float("inf"),
        lambda x: x + 0.1,
        lambda x: x.to(torch.float64),
        lambda x: x.to(torch.float16),
        lambda x: torch.full((3,), 0.1, dtype=torch.float64) + x,
        lambda x: torch.full((3,), 0.1) + x,
        lambda x: x.sum(0, keepdim=True),
        lambda x: x.sum(0),
        lambda x: torch.empty_like(x.reshape(1, 3, 1, 1), memory_format=torch.channels_last),
        lambda x: torch.empty_like(x.reshape(1, 3, 1, 1), memory_format=torch.contiguous_format),
    ]
    keys = [fingerprint(graph_of(f), [X]) for f in different]
    assert len(set(keys)) == len(keys)
    assert [fingerprint(graph_of(f), [X]) for f in different] == keys
    same = graph_of(different[0])
    others = [X.double(), torch.ones(6)[::2], torch.ones(3, 1)]
    assert len({fingerprint(same, [x]) for x in (X, *others)}) == 4


def test_a_fingerprint_tells_what_the_process_has_set():
    graph = graph_of(lambda x: x * 2)
    before, threads = fingerprint(graph, [X]), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert fingerprint(graph, [X]) != before
    finally:
        torch.set_num_threads(threads)
    try:
        torch.set_default_dtype(torch.float64)
        assert fingerprint(graph, [X]) != before
    finally:
        torch.set_default_dtype(torch.float32)
    assert fingerprint(graph, [X]) == before


def test_a_process_compiles_the_same_program_of_two_models_once(stub):
    graphs = []
    for seed in range(2):
        torch.manual_seed(seed)
        net = nn.Linear(3, 2)
        optimizer = torch.optim.Adam(net.parameters())
        ledger = Ledger(optimizer, [list(net.parameters())], torch.device("cpu"))
        held = torch.randn(2)
        step = Step(
            lambda x, net=net, held=held: (net(x) * held).sum(), {"n": net}, [X], ["n.weight", "n.bias"], ledger
        )
        step.compile()
        before = net.weight.detach().clone()
        step([X])
        assert not torch.equal(net.weight, before)
        graphs.append(step)
    assert len(stub) == 1
    assert graphs[1].known() == "process"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aevb", "m2", "enumeration", "rws"])
def test_what_lowering_adds_to_a_graph_does_not_depend_on_the_model(name, monkeypatch):
    """A compiled program keeps the constants of the first model's lowering."""
    from algorithm_cases import made
    from torch._inductor.decomposition import select_decomp_table

    lowered = []
    for seed in range(2):
        vae, inference = small_vae(name, seed), made(name)
        inference.check(vae)
        modules = {"vae": vae, "own": inference}
        wanted = [f"vae.{n}" for n, p in vae.named_parameters() if n in inference.moved(vae, inference.phases[0])]
        batch = data(name).map(lambda t, seed=seed: t.roll(seed, 0))
        captured = capture(lambda b, i=inference, v=vae: i.phases[0].compute(v, b, None)[0], modules, [batch], wanted)
        both = nn.ModuleDict(modules)
        arguments = captured.arguments(
            dict(both.named_parameters()), dict(both.named_buffers()), [batch], captured.noise()
        )
        with torch.no_grad():
            graph = make_fx(captured.graph, decomposition_table=select_decomp_table())(*arguments)
        lowered.append(lift_constants(graph))
    assert len(lowered[0]) == len(lowered[1])
    assert all(torch.equal(a, b) for a, b in zip(*lowered, strict=True))


# ------------------------------------------------------------------ the cache on disk


def test_what_is_said_to_be_on_disk_is_there(stub, tmp_path):
    graph = graph_of(lambda x: x * 2)
    assert backend.known(graph, [X]) == ""
    compiled = backend.compile_graph(graph, [X])
    assert torch.equal(compiled.run([X])[0] if isinstance(compiled.run([X]), tuple) else compiled.run([X]), 2 * X)
    assert backend.known(graph, [X]) == "process"
    backend._compiled.clear()  # another process
    assert backend.known(graph, [X]) == ""
    entry = tmp_path / "cache" / "fxgraph" / "ab" / "fabc"
    entry.mkdir(parents=True)
    assert backend.known(graph, [X]) == "disk"
    entry.rmdir()
    assert backend.known(graph, [X]) == ""
    (stamp,) = (tmp_path / "cache" / "pyro_vae").iterdir()
    stamp.write_text("")  # by a process that was killed
    assert backend.known(graph, [X]) == ""


def test_a_cache_folder_that_cannot_be_written_is_not_fatal(stub, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    graph = graph_of(lambda x: x * 2)
    assert backend.known(graph, [X]) == ""
    with pytest.warns(UserWarning, match=r"the compilation cache cannot be written .*Set TORCHINDUCTOR_CACHE_DIR"):
        backend.compile_graph(graph, [X])
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.is_dir()
    assert len(list((folder / "pyro_vae").iterdir())) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend.compile_graph(graph_of(lambda x: x * 3), [X])  # told once


# ------------------------------------------------------------------ where compiling fails


def test_interpreted_programs_are_not_compiled(stub):
    with interpreted():
        assert backend.compile_graph(graph_of(lambda x: x * 2), [X]).seconds == 0.0
    assert stub == []


def test_an_unsupported_version_of_torch_is_told_from_those_that_work(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch._inductor.compile_fx as compile_fx

    monkeypatch.delattr(compile_fx, "compile_fx_inner")
    with pytest.raises(
        CompilationError,
        match=rf"torch {torch.__version__} \(tested with 2.11, .*ImportError".replace("+", r"\+"),
    ):
        backend.compile_graph(graph_of(lambda x: x * 2), [X])
    monkeypatch.setitem(sys.modules, "torch._inductor.runtime.cache_dir_utils", None)
    assert backend.known(graph_of(lambda x: x * 2), [X]) == ""


@pytest.fixture
def without_compiler():
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("/missing/c++",)}):
        yield


def test_without_a_compiler_true_is_an_error_and_auto_runs_uncompiled(monkeypatch, without_compiler):
    options = {"optimizer": lambda p: torch.optim.Adam(p, lr=1e-2), "batch_size": 5}
    with pytest.raises(CompilationError, match=r"cannot compile on this machine.*(C\+\+ compiler|/missing/c\+\+)"):
        fit_with(small_vae("aevb"), data("aevb"), AEVB(), steps=3, compile=True, **options)

    def callback(step, metrics):
        if step == 10:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="fit: runs uncompiled: cannot compile on this machine") as caught:
        history = fit_with(
            small_vae("aevb"), data("aevb"), AEVB(), steps=10**6, compile="auto", callback=callback, **options
        )
    assert len(caught) == 1
    assert (history.steps, history.stopped) == (10, "interrupted")
    assert history.execution.startswith("uncompiled: cannot compile on this machine")


def test_an_interrupted_compilation_is_begun_anew(stub, monkeypatch):
    graph, whole = graph_of(lambda x: x * 2), backend._inductor

    def interrupted(graph, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "_inductor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backend.compile_graph(graph, [X])
    assert backend.known(graph, [X]) == ""
    monkeypatch.setattr(backend, "_inductor", whole)
    backend.compile_graph(graph, [X])
    assert backend.known(graph, [X]) == "process"


_PROGRAM = """
import time, torch
from torch import nn
torch.set_num_threads(1)
from pyro_vae.engine import Ledger, Step
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
ledger = Ledger(torch.optim.Adam(net.parameters(), lr=0.1), [list(net.parameters())], torch.device("cpu"))
step = Step(lambda x: (net(x) - torch.randn(2)).square().sum(), {"n": net}, [torch.ones(3, 5)],
            [f"n.{name}" for name, _ in net.named_parameters()], ledger)
print(repr(step.known()), flush=True)
seconds = step.compile()
losses = []
for i in range(3):
    torch.manual_seed(i)
    losses.append(float(step([torch.ones(3, 5)])))
print(seconds, *losses)
"""


def _process(folder, kill_after=None):
    """Runs the program in a process of its own; what it said, or None where it was killed in the middle."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        known = process.stdout.readline().strip()
        if kill_after is not None:
            deadline = time.monotonic() + kill_after
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            with suppress(ProcessLookupError):  # it has ended before
                os.killpg(process.pid, signal.SIGKILL)
            return None
        out, _ = process.communicate()
    assert process.returncode == 0
    seconds, *losses = map(float, out.split())
    return known.strip("'"), seconds, losses


@pytest.mark.slow
def test_a_second_process_finds_the_program_on_disk_also_after_the_first_was_killed_in_the_middle(tmp_path):
    for seconds in (1.0, 2.0, 4.0):
        _process(tmp_path / "cache", kill_after=seconds)
    known, cold, losses = _process(tmp_path / "cache")
    again, warm, same = _process(tmp_path / "cache")
    assert known in ("", "disk")
    assert again == "disk"
    assert warm < cold or known == "disk"
    assert same == losses
    fresh, _, expected = _process(tmp_path / "other")
    assert fresh == ""
    assert losses == expected


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 100, 5000])
def test_libraries_that_a_killed_compiler_left_unfinished_are_made_anew(tmp_path, left):
    """As many bytes are there as the linker had written."""
    _, _, losses = _process(tmp_path)
    libraries = [*tmp_path.rglob("*.so")]
    assert libraries
    for path in libraries:
        path.write_bytes(path.read_bytes()[:left])
    assert _process(tmp_path)[2] == losses
    assert all(path.stat().st_size > left for path in libraries)


def test_only_libraries_that_are_cut_off_and_that_nobody_works_on_are_removed(tmp_path):
    whole = Path(torch._C.__file__).read_bytes()
    places = {name: tmp_path / "ab" / f"{name}.main.so" for name in ("whole", "empty", "cut", "linked", "other")}
    (tmp_path / "ab").mkdir()
    for place, content in zip(places.values(), [whole, b"", whole[:5000], whole[:30], b"no library"], strict=True):
        place.write_bytes(content)
    (tmp_path / "locks").mkdir()
    with FileLock(str(tmp_path / "locks" / "linked.lock")):
        remove_unfinished(tmp_path)
    assert {name for name, place in places.items() if place.exists()} == {"whole", "linked", "other"}
    remove_unfinished(tmp_path)
    assert {name for name, place in places.items() if place.exists()} == {"whole", "other"}


@pytest.mark.parametrize("wrapped", [False, True])
def test_vector_instructions_are_probed_only_where_the_compiler_fails_without(monkeypatch, wrapped):
    """Each of Inductor's ten probes compiles a program."""
    from torch._inductor import config
    from torch._inductor.exc import CppCompileError, InductorError

    seen = []

    def compiled(graph, arguments):
        seen.append(config.cpp.vec_isa_ok)
        if config.cpp.vec_isa_ok:
            error = CppCompileError(["c++"], "unknown option -mavx512f")
            raise InductorError(error, None) if wrapped else error
        return (lambda flat: flat), ""

    monkeypatch.setattr(backend, "_inductor", compiled)
    graph = graph_of(lambda x: x * 2)
    backend._without_probes(graph, [torch.ones(3)])
    with config.patch({"cpp.vec_isa_ok": False}):
        backend._without_probes(graph, [torch.ones(3)])
    assert seen == [True, None, False]
