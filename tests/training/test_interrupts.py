from __future__ import annotations

import os
import signal
from types import FrameType

import pytest

from c3tools.training.loop import interrupts_held

BOTH = [signal.SIGINT, signal.SIGTERM]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in BOTH]


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_waits_for_the_end_of_the_block(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    seen: list[int] = []

    def handler(got: int, frame: FrameType | None) -> None:
        seen.append(got)

    former = signal.signal(number, handler)
    before = handlers()
    try:
        # the handler of this test raises nothing; the block still ends as interrupted
        with pytest.raises(KeyboardInterrupt), interrupts_held() as interrupted:
            assert not interrupted()
            os.kill(os.getpid(), number)
            assert interrupted()
            assert seen == []
        assert seen == [number]
        assert handlers() == before
    finally:
        signal.signal(number, former)


def test_a_second_signal_acts_at_once() -> None:
    before, reached = handlers(), []
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("once")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("twice")
    assert reached == ["once"]
    assert handlers() == before


def test_an_error_in_the_block_is_not_hidden_and_a_signal_that_is_ignored_stays_so() -> None:
    before = handlers()
    with pytest.raises(ValueError, match="mine"), interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("mine")
    assert handlers() == before
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_held() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGINT, former)
