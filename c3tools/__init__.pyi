"""The public names and their modules: read by editors and type checkers, and by `__init__.py` to
import lazily.
"""

from .captioning.caption import caption_images as caption_images
from .captioning.captioner import Captioner as Captioner
from .captioning.evaluate_captions import evaluate_captions as evaluate_captions
from .captioning.train_captioner import train_captioner as train_captioner
from .clusters.cluster import Clusters as Clusters
from .clusters.cluster import cluster as cluster
from .connect.heads import ConnectedHeads as ConnectedHeads
from .connect.heads import apply_heads as apply_heads
from .connect.heads import connect_heads as connect_heads
from .connect.towers import connect_towers as connect_towers
from .connect.training_pairs import read_features as read_features
from .curation.duplicates import Duplicates as Duplicates
from .curation.duplicates import find_duplicates as find_duplicates
from .curation.wrong_pairs import PairCheck as PairCheck
from .curation.wrong_pairs import check_pairs as check_pairs
from .demo.demo import copy_photos as copy_photos
from .demo.demo import run_demo as run_demo
from .embedding.embed import embed as embed
from .encoders.encoder import Encoder as Encoder
from .encoders.loading import load_encoder as load_encoder
from .encoders.networks import list_models as list_models
from .errors import C3Error as C3Error
from .export.export import export_store as export_store
from .geometry.report import GapReport as GapReport
from .geometry.report import gap_report as gap_report
from .identity import ModelIdentity as ModelIdentity
from .index.build import build_index as build_index
from .index.index import Hit as Hit
from .index.index import Index as Index
from .inputs.import_embeddings import import_embeddings as import_embeddings
from .machine import describe_machine as describe_machine
from .moments import Moments as Moments
from .paper.ablation.caption_table import ablate_captions as ablate_captions
from .paper.ablation.image_table import ablate_images as ablate_images
from .paper.imaging.evaluate_images import evaluate_images as evaluate_images
from .paper.imaging.generation import generate as generate
from .paper.imaging.generator import Generator as Generator
from .paper.imaging.train_generator import train_generator as train_generator
from .paper.theory.contrastive import simulate_gap_after_training as simulate_gap_after_training
from .paper.theory.contrastive import simulate_stable_region as simulate_stable_region
from .paper.theory.contrastive import simulate_temperature as simulate_temperature
from .paper.theory.networks import simulate_depth as simulate_depth
from .paper.theory.networks import simulate_init_gap as simulate_init_gap
from .reporter import Reporter as Reporter
from .serve.server import serve_index as serve_index
from .store.leave_out import LeftOutRows as LeftOutRows
from .store.leave_out import leave_out as leave_out
from .store.means import (
    compute_means as compute_means,
)
from .store.means import (
    load_means as load_means,
)
from .store.means import (
    save_means as save_means,
)
from .store.means import (
    unload_means as unload_means,
)
from .store.merge_split import merge_stores as merge_stores
from .store.merge_split import split_store as split_store
from .store.reader import Store as Store
from .store.rows import Pairs as Pairs
from .store.rows import Rows as Rows
from .store.verify import verify_store as verify_store
from .terminal import TerminalReporter as TerminalReporter
from .transforms.calibration import Calibration as Calibration
from .transforms.estimator import EmbeddingTransformer as EmbeddingTransformer
from .transforms.pipeline import Pipeline as Pipeline
from .transforms.presets import preset as preset
from .transforms.torch_module import TransformModule as TransformModule

__version__: str
__all__: list[str]
_HOMES: dict[str, str]
