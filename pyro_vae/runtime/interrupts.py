"""Ctrl-C at a moment that suits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _Interrupts:
    """What our handler of Ctrl-C knows: whether it is in place, whether to wait, whether Ctrl-C came meanwhile."""

    def __init__(self) -> None:
        self.installed = self.held = self.came = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.held or self.came:  # a second one does not wait
            self.came = False
            signal.default_int_handler(number, frame)
        self.came = True


_interrupts = _Interrupts()


@contextmanager
def deferrable() -> Iterator[None]:
    """Within the block, `uninterrupted` costs next to nothing: the handler that it needs is in place already.

    Does nothing outside the main thread, where Ctrl-C never arrives, and where the caller handles the signal.
    """
    if (
        _interrupts.installed
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _interrupts.handle)
    _interrupts.installed = True
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _interrupts.installed = False


class uninterrupted:
    """Holds Ctrl-C back within the block, and raises KeyboardInterrupt at its end where it came.

    What changes many tensors in place is either done or not begun.
    """

    def __enter__(self) -> None:
        self._handler = None if _interrupts.installed else deferrable()
        if self._handler is not None:
            self._handler.__enter__()
        self._outer = _interrupts.held
        _interrupts.held = _interrupts.installed and threading.current_thread() is threading.main_thread()

    def __exit__(self, *exception: object) -> None:
        _interrupts.held = self._outer
        if self._handler is not None:
            self._handler.__exit__(None, None, None)
        if _interrupts.came and not self._outer:
            _interrupts.came = False
            raise KeyboardInterrupt
