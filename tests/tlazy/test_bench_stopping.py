"""Ctrl-C and SIGTERM: the first one stops a run, and nothing stops what is left to do then."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tlazy.bench.stopping import STOPPING, Stopped, stoppable


@pytest.mark.parametrize("number", STOPPING)
def test_a_second_signal_does_not_end_what_the_first_one_left_to_do(number):
    before = [signal.getsignal(each) for each in STOPPING]
    done = []

    def interrupted():
        try:
            signal.raise_signal(number)
        finally:
            for each in STOPPING:
                signal.raise_signal(each)
            done.append("the rest")

    with pytest.raises(Stopped) as stopped, stoppable():
        interrupted()
    assert done == ["the rest"]
    assert stopped.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in STOPPING] == before


def test_a_signal_that_a_shell_keeps_from_its_background_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped), stoppable():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_signals_stay_with_the_main_one():
    before = [signal.getsignal(each) for each in STOPPING]

    def within():
        with stoppable():
            return [signal.getsignal(each) for each in STOPPING]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(within).result() == before
