"""A short walk of the state machine; `benchmarks/store_model.py` takes a long one."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

from .model import StoreMachine

TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=6,
    stateful_step_count=12,
    phases=(Phase.reuse, Phase.generate),  # steps are dear; the script looks for fewer that fail in the same way
    suppress_health_check=list(HealthCheck),
)
