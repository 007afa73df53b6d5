"""A signal waits for the end of a step; a second one does not."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from train.stopping import SIGNALS, stop_signal


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_held_back_and_told(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signal() as came:
        assert came() == 0
        os.kill(os.getpid(), number)
        assert came() == number
    assert signal.getsignal(number) is before


def test_a_second_signal_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_signal():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_the_process_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signal() as came:
            os.kill(os.getpid(), signal.SIGINT)
            assert came() == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_nothing_is_held_back() -> None:
    seen: list[object] = []

    def work() -> None:
        with stop_signal() as came:
            seen.append((came(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, signal.SIG_DFL)]
