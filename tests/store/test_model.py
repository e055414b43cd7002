"""A short walk of the state machine; `benchmarks/store_model.py` takes a long one."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from .model import StoreMachine

SHORT = settings(
    max_examples=6,
    stateful_step_count=12,
    phases=(Phase.reuse, Phase.generate),  # steps are slow; the script looks for fewer that fail in the same way
    suppress_health_check=list(HealthCheck),
)


def test_a_store_holds_what_a_dictionary_in_memory_holds() -> None:
    run_state_machine_as_test(StoreMachine, settings=SHORT)
