"""Connect, Collapse, Corrupt: cross-modal tasks from uni-modal data.

The public names are imported lazily: `import c3tools` loads neither torch nor pyarrow.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "C3Error": "errors",
    "Captioner": "captioning",
    "ConnectedHeads": "connect",
    "GapReport": "geometry.report",
    "Generator": "imaging",
    "Index": "index",
    "ModelIdentity": "identity",
    "Moments": "moments",
    "Pairs": "store",
    "Pipeline": "transforms",
    "Reporter": "reporter",
    "Rows": "store",
    "Store": "store",
    "TerminalReporter": "terminal",
    "ablate": "ablation",
    "ablate_images": "ablation",
    "apply_heads": "connect",
    "build_index": "index",
    "caption_images": "captioning.caption",
    "compute_means": "store.means",
    "connect_heads": "connect",
    "connect_towers": "connect",
    "copy_photos": "demo",
    "describe_machine": "machine",
    "embed": "embedding",
    "evaluate_captions": "captioning.evaluate",
    "evaluate_images": "imaging",
    "export_store": "export",
    "gap_report": "geometry.report",
    "gap_reports": "geometry.comparison",
    "generate": "imaging",
    "import_embeddings": "store.import_embeddings",
    "list_models": "encoders.models",
    "load_encoder": "encoders",
    "load_means": "store.means",
    "merge_means": "store.means",
    "merge_stores": "store.merge",
    "preset": "transforms",
    "read_features": "connect",
    "repair_store": "store.verify",
    "run_demo": "demo",
    "save_means": "store.means",
    "simulate_depth": "geometry.theory.depth",
    "simulate_gap_after_training": "geometry.theory.optimisation",
    "simulate_init_gap": "geometry.theory.initialisation",
    "simulate_stable_region": "geometry.theory.stable_region",
    "simulate_temperature": "geometry.theory.temperature",
    "split_store": "store.split",
    "train_captioner": "captioning",
    "train_generator": "imaging",
    "unload_means": "store.means",
    "verify_store": "store.verify",
}

__version__ = "0.1.0"
__all__ = sorted(["__version__", *_HOMES])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
