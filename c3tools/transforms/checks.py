"""The order check: pipelines that no method means are named in words.

The method is normalise, collapse, corrupt, re-normalise; what breaks it does not fail, it silently costs
accuracy (METHODS of C3: noise on validation inputs, means subtracted twice, no re-normalisation).
"""

from __future__ import annotations

from collections.abc import Sequence

from .steps import Step


def order_findings(steps: Sequence[Step]) -> list[str]:
    """What is wrong with the order and the roles of ``steps``, one sentence each; empty when nothing is."""
    findings = []
    for step in steps:
        if step.noisy and step.role != "training":
            findings.append(
                f"{step.kind} has the role {step.role}: noise belongs on training inputs only, "
                "never on validation or inference inputs."
            )
    for training in (True, False):
        for finding in _path_findings(_path(steps, training), "training" if training else "inference"):
            if finding not in findings:
                findings.append(finding)
    return findings


def _path(steps: Sequence[Step], training: bool) -> list[Step]:
    return [step for step in steps if step.role in ("both", "training" if training else "inference")]


def _path_findings(path: Sequence[Step], role: str) -> list[str]:
    findings = []
    unit = changed = False
    noise: Step | None = None
    centred: Step | None = None
    for step in path:
        if step.needs_unit and not unit:
            after = f"and comes after {centred.kind}" if centred else "and there is no normalize before it"
            findings.append(f"{step.kind} is fitted on vectors of unit norm {after}.")
        if step.centres:
            if noise is not None:
                findings.append(
                    f"{noise.kind} comes before {step.kind}: noise is added to centred vectors, so centre first."
                )
            if centred is not None:
                findings.append(f"{step.kind} comes after {centred.kind}: the mean would be subtracted twice.")
            centred = step
        if step.noisy:
            noise = step
        unit = step.keeps_unit
        changed = changed or not step.keeps_unit
    if changed and not unit:
        findings.append(f"{role} inputs end without normalize: decoders and searches expect unit norm.")
    return findings
