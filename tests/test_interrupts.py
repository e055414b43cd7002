from __future__ import annotations

import signal
from typing import Any

import pytest

from c3tools.interrupts import interrupts_held


def test_a_signal_waits_for_the_end_of_the_block_and_a_second_acts_at_once() -> None:
    noted: Any = []
    own = lambda number, frame: noted.append(number)  # noqa: E731 - raises nothing; the block still ends as interrupted
    both = (signal.SIGINT, signal.SIGTERM)
    former = [(number, signal.signal(number, own)) for number in both]
    try:
        for signals in ([both[0]], [both[1]], both):
            with pytest.raises(KeyboardInterrupt), interrupts_held() as interrupted:
                for number in signals:
                    noted.append(interrupted())
                    signal.raise_signal(number)
                noted.append(interrupted())
        assert noted == [
            False,
            True,
            both[0],
            False,
            True,
            both[1],
            False,
            True,
            both[1],
            True,
            both[0],
        ]
        with pytest.raises(ValueError, match="mine"), interrupts_held():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("mine")  # is not hidden
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with interrupts_held() as interrupted:
            signal.raise_signal(signal.SIGTERM)
            assert not interrupted()
        assert ([signal.getsignal(number) for number in both], len(noted)) == (
            [own, signal.SIG_IGN],
            11,
        )
    finally:
        for number, handler in former:
            signal.signal(number, handler)
