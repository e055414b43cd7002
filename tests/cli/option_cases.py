"""What `test_options.py` tries: a value for every option and argument, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass

ELSEWHERE = {
    "json": "where the result is written",
    "output": "where the result is written",
    "open": "shown: the page in the browser",
    "full": "shown: every table",
    "html": "shown: a page",
    "figure": "shown: a drawing",
    "figures": "shown: drawings",
    "overwrite": "which results may be replaced",
    "strict": "the exit code",
    "device": "how fast: where numbers are computed",
    "backend": "how fast: the library of the encoder",
    "precision": "how fast: the number format of computations",
    "workers": "how fast: processes that decode or write",
    "batch_size": "how fast: rows that are computed at a time, but in trainings",
    "chunk": "how fast: pairs that are embedded at a time",
    "jobs": "how fast: trainings at a time",
    "executor": "where work runs",
    "address": "where work runs",
    "processes": "how fast: processes of the cluster",
    "image_timeout": "how long an image may take",
    "download": "whether URLs are read, which needs the network",
    "host": "where the page is served",
    "port": "where the page is served",
    "fast": "how fast: the same result to 0.1%",
    "repository": "where a result is pushed or pulled from",
    "private": "who sees a repository",
    "license": "shown: on the card of a repository",
    "revision": "where in a repository",
    "dataset": "where on the hub",
    "coco": "where captions are written too",
    "embed store": "where the result is written",
    "import store": "where the result is written",
    "import model": "shown: the model that the store names",
    "means load store": "where moments are loaded",
    "means unload store": "where moments are loaded",
    "means save file": "where the result is written",
    "caption model": "where the decoder's model is read from: another model is an error",
    "caption random_init": "which weights the decoder's model has: others are an error",
    "table": "where the table is written",
    "pairs seed": "which other rows pairs are compared with; the estimates hardly change",
    "by": "shown: the colours of the map on the page",
    "here": "shown: of the models, those that are on this machine",
}
"""Options that change where, how fast, or what is shown, with what that is."""


@dataclass(frozen=True)
class Case:
    """A value of an option that is tried.

    Attributes:
        value: what is typed after its name; empty for a flag.
        line: the command line that it is added to, or in which it replaces the value of the option;
            by default that of `LINES`.
    """

    value: str = ""
    line: str | None = None


@dataclass(frozen=True)
class Argument:
    """Values of an argument that are tried.

    Attributes:
        value: its value in `LINES`; empty if it is left out there.
        other: a value that gives another result.
        wrong: a value that is refused by its name; None if there is none, as of texts.
        line: the command line that it is in; by default that of `LINES`.
    """

    value: str
    other: str
    wrong: str | None = "nowhere"
    line: str | None = None


ABLATE = (
    "ablate-captions --methods C3 --seeds 1 --epochs 1 --size tiny --precision fp32 --sigma 0.1"
)
ABLATE_IMAGES = (
    "ablate-images --store photos-store --methods C3 --seeds 1 --steps 2 --size tiny "
    "--sigma 0.1 --precision fp32"
)
CAPTION = "caption --embeddings c3-store --decoder c3-decoder"
CAPTION_PHOTOS = "caption few --decoder c3-mini --beams 1"
EMBED = "embed few --workers 0 --model local-dir:tiny --backend torch --precision fp32 --store s"
EVALUATE = "evaluate-captions --decoder c3-decoder --metrics ROUGE-L --resamples 9"
GENERATE = "generate --generator c3-generator --sampling-steps 1"
HEADS = "connect heads --dim 8 --hidden 8 --batch-size 40 --epochs 1 --precision fp32 -o new"
INIT_GAP = "simulate init-gap photos --model local-dir:tiny --seeds 1"
MANY = "import --image many.npy --text many2.npy --other audio=many3.npy --store"
TOWERS = "photos --model local-dir:tiny --epochs 1 --batch-size 16 --precision fp32"
TRAIN = "train-decoder --size tiny --epochs 1 --precision fp32 --sigma 0.1 -o new"
TRAIN_GENERATOR = (
    "train-generator --store photos-store --size tiny --sigma 0.1 --precision fp32 --steps 2 -o new"
)


def embed(path: str) -> str:
    """Return the line that embeds another path."""
    return EMBED.replace("few", path)


def of_epochs(line: str) -> str:
    """Return a line that trains for eight epochs instead of one."""
    return line.replace("--epochs 1", "--epochs 8")


LINES = {
    "embed": EMBED,
    "import": "import --image i.npy --text i.npy --store s",
    "connect heads": HEADS,
    "connect apply": "connect apply -o new",
    "connect lit": f"connect lit {TOWERS}",
    "connect full": f"connect full {TOWERS}",
    "means save": "means save m.safetensors",
    "means load": "means load two.safetensors",
    "gap-report": "gap-report --presets raw",
    "export": "export --workers 1 --sigma 0.1",
    "train-decoder": TRAIN,
    "caption": CAPTION,
    "train-generator": TRAIN_GENERATOR,
    "generate": f"{GENERATE} --embeddings ten.npy",
    "evaluate-captions": EVALUATE,
    "evaluate-images": "evaluate-images c3-images --store photos-store",
    "ablate-captions": f"{ABLATE} --metrics ROUGE-L",
    "ablate-images": ABLATE_IMAGES,
    "search": "search --key image01",
    "merge": "merge c3-store other --prefix -o new",
    "split": "split -o new",
    "push": "push c3-store someone/name",
    "pull": "pull someone/name",
    "simulate init-gap": INIT_GAP,
    "simulate depth": "simulate depth --width 8 --layers 5 --rows 20",
    "simulate gap-after-training": "simulate gap-after-training --steps 2 --every 2",
    "simulate stable-region": "simulate stable-region --tau 0.04 --tau 0.1 --delta 0.5",
    "simulate temperature": "simulate temperature --scale 5 --steps 2",
}
"""Command lines that options are added to; by default the command alone."""

IN_LONG_CHECKS = ("connect full", "ablate-images", "demo")
"""Commands whose options are tried by `make long`, because each run takes seconds."""

CASES = {
    # of all commands
    "seed": Case("3"),
    "seeds": Case("2"),
    "sigma": Case("0.3"),
    "split": Case("val"),
    "store": Case("other"),
    "preset": Case("c1"),
    "modality": Case("text"),
    "train_split": Case("val"),
    "dtype": Case("float32"),
    "steps": Case("3"),
    "epochs": Case("2"),
    # embed
    "embed captions": Case("mine.jsonl"),
    "embed text_column": Case("other", embed("table.csv")),
    "embed image_column": Case("second", embed("table.csv")),
    "embed key_column": Case("name", embed("table.csv")),
    "embed keep_columns": Case("license"),
    "embed exact_decoding": Case(),
    "embed images_root": Case("photos", f"{embed('paths.csv')} --image-column image"),
    "embed model": Case("c3-mini"),
    "embed random_init": Case("7"),
    "embed shard_size": Case("1"),
    "embed retry_failed": Case("", embed("album").replace("--store s", "--store album-store")),
    "embed update": Case("", embed("album").replace("--store s", "--store album-store")),
    "embed prune": Case("", embed("album").replace("--store s", "--store album-store")),
    "embed faiss": Case(),
    "embed dry_run": Case(),
    "embed follow_symlinks": Case("", embed("linked")),
    # import
    "import image": Case("t.npy", "import --image i.npy --store s"),
    "import text": Case("t.npy", "import --text i.npy --store s"),
    "import other": Case("audio=i.npy"),
    "import meta": Case("ids.jsonl", "import --image i.npy --store s"),
    "import text_meta": Case(
        "texts-of.jsonl", "import --image i.npy --text i.npy --meta ids.jsonl --store s"
    ),
    "import image_array": Case("b", "import --image arrays.npz --image-array a --store s"),
    "import text_array": Case("b", "import --text arrays.npz --text-array a --store s"),
    "import key_column": Case("name", "import --image i.npy --meta named.jsonl --store s"),
    "import image_key_column": Case(
        "of",
        "import --image i.npy --text i.npy --meta ids.jsonl --text-meta texts-of.jsonl --store s",
    ),
    "import caption_column": Case("name", "import --text i.npy --meta named.jsonl --store s"),
    "import split_column": Case("fold", "import --image i.npy --meta named.jsonl --store s"),
    "import keep_columns": Case("fold", "import --image i.npy --meta named.jsonl --store s"),
    "import normalise": Case("", "import --image longer.npy --store s"),
    # connect
    "connect apply image": Case("other.npy", "connect apply -o new --image far.npy --text far.npy"),
    "connect apply text": Case("other.npy", "connect apply -o new --image far.npy --text far.npy"),
    "connect apply other": Case(
        "text=other.npy", "connect apply -o new --image far.npy --other text=far.npy"
    ),
    "connect heads image": Case("many2.npy", f"{HEADS} --image many.npy --text many.npy"),
    "connect heads text": Case("many2.npy", f"{HEADS} --image many.npy --text many.npy"),
    "connect heads other": Case(
        "audio=many2.npy", f"{HEADS} --image many.npy --other audio=many.npy"
    ),
    "connect heads meta": Case("ids-of-many.jsonl", f"{HEADS} --image many.npy --text many.npy"),
    "connect heads text_meta": Case(
        "texts-of-many.jsonl",
        f"{HEADS} --image many.npy --text many.npy --meta ids-of-many.jsonl",
    ),
    "connect heads image_array": Case(
        "b", f"{HEADS} --image many.npz --image-array a --text many.npy"
    ),
    "connect heads text_array": Case(
        "b", f"{HEADS} --image many.npy --text many.npz --text-array a"
    ),
    "connect apply meta": Case(
        "ids-of-many.jsonl", "connect apply -o new --image many.npy --text many.npy"
    ),
    "connect apply text_meta": Case(
        "texts-of-many.jsonl",
        "connect apply -o new --image many.npy --text many.npy --meta ids-of-many.jsonl",
    ),
    "connect apply image_array": Case(
        "b", "connect apply -o new --image many.npz --image-array a --text many.npy"
    ),
    "connect apply text_array": Case(
        "b", "connect apply -o new --image many.npy --text many.npz --text-array a"
    ),
    "connect second_store": Case("other"),
    "connect heads modalities": Case("image,audio", f"{HEADS} --store three"),
    "connect heads dim": Case("4"),
    "connect heads hidden": Case("4"),
    "connect heads dropout": Case("0.5"),
    "connect heads cone": Case("1.33"),
    "connect heads batch_size": Case("20"),
    "connect logit_scale": Case("5"),
    "connect close_gap": Case("0.5"),
    "connect learning_rate": Case("0.1"),
    "connect heads train_split": Case("test"),
    "connect heads patience": Case("0", f"{of_epochs(HEADS)} --learning-rate 10"),
    "connect lit patience": Case("0", f"connect lit {of_epochs(TOWERS)} --learning-rate 1e-9"),
    "connect full patience": Case("0", f"connect full {of_epochs(TOWERS)} --learning-rate 1e-9"),
    "connect captions": Case("mine.jsonl"),
    "connect model": Case("local-dir:other-tiny"),
    "connect random_init": Case("7"),
    "connect full augment": Case(),
    # stores
    "verify store": Case("incomplete"),
    "verify repair": Case("", "verify --store damaged"),
    "verify forget": Case("", "verify --store incomplete"),
    "merge prefix": Case("", "merge images texts -o new"),
    "split fractions": Case("0.5,0.25,0.25"),
    "split file": Case("splits.jsonl"),
    "split key_column": Case("name", "split -o new --file two-splits.jsonl"),
    "split split_column": Case("fold", "split -o new --file two-splits.jsonl"),
    "clusters k": Case("4"),
    "clusters modalities": Case("text"),
    "pairs split": Case("train"),
    "pairs modalities": Case("image,audio", "pairs --store three"),
    "pairs mark_worst": Case("0.1"),
    "pairs mark_below": Case("100"),
    "pairs mark_splits": Case("all", "pairs --mark-worst 0.3"),
    "pairs by": Case("kind", "pairs --mark-worst 0.3 --store kinds"),
    "duplicates cosine": Case("0.5"),
    "duplicates store": Case("updated-store"),
    "duplicates modality": Case("text", "duplicates --store updated-store"),
    # geometry
    "gap-report modalities": Case("image"),
    "gap-report presets": Case("whiten"),
    "simulate init-gap model": Case("local-dir:other-tiny"),
    "simulate depth width": Case("4"),
    "simulate depth layers": Case("10"),
    "simulate depth rows": Case("30"),
    "simulate gap-after-training every": Case("1"),
    "simulate stable-region tau": Case("0.03"),
    "simulate stable-region delta": Case("0.4"),
    "simulate temperature store": Case("c3-store"),
    "simulate temperature scale": Case("20"),
    # export, index, search
    "export preset": Case("c1", "export --workers 1"),
    "export pipeline": Case("steps.yaml", "export --workers 1"),
    "export format": Case("npy"),
    "export role": Case("inference"),
    "export train_on": Case("image"),
    "export before_noise": Case(),
    "export metric": Case("l2"),
    "export one_table": Case(),
    "export fuse": Case("", "export --workers 1"),
    "export refit": Case("", "export --store updated-store --workers 1 --sigma 0.1 -o export"),
    "index factory": Case("IVF4,Flat"),
    "index split": Case("train"),
    "index pipeline": Case("steps.yaml"),
    "index recall": Case("0.1", "index --factory IVF16,Flat"),
    "index rebuild": Case("", "index -o c3-index"),
    "search image": Case(
        "photos/000000000790.jpg", "search --image few/000000000285.jpg --index mini-index"
    ),
    "search vector": Case("one.npy", "search --vector second.npy"),
    "search key": Case("image02"),
    "search modality": Case("image", "search --vector one.npy"),
    "search only": Case("text"),
    "search split": Case("train"),
    "search separate": Case(),
    "search by": Case("row"),
    "search k": Case("3"),
    "search weights": Case("1,-0.5", "search dog cat --index mini-index"),
    "search nprobe": Case("1", "search --key image01 --index ivf --only text -k 50"),
    "search index": Case("texts-index"),
    # decoders
    "train-decoder preset": Case("c2-corrupt"),
    "train-decoder size": Case("small"),
    "train-decoder set": Case("dropout=0.5"),
    "train-decoder unconditional": Case(
        "", "train-decoder --size tiny --epochs 1 --precision fp32 -o new"
    ),
    "train-decoder train_fraction": Case("0.5"),
    "train-decoder patience": Case("1", f"{of_epochs(TRAIN)} --set learning_rate=1e-12"),
    "train-decoder monitor": Case("cross-modal"),
    "train-decoder start": Case("c3-decoder", "train-decoder --epochs 1 --precision fp32 -o new"),
    "train-decoder pairs": Case("0.5"),
    "train-decoder pseudo_pairs": Case(),
    "train-decoder esper": Case(
        "",
        "train-decoder --store tiny-store --from language-model --epochs 1 --precision fp32 -o new",
    ),
    "train-decoder train_split": Case("all"),
    "caption embeddings": Case("other"),
    "caption modality": Case("text"),
    "caption array": Case("text"),
    "caption decoder": Case("decoder2"),
    "caption txt": Case("", CAPTION_PHOTOS),
    "caption xmp": Case("", CAPTION_PHOTOS),
    "caption follow_symlinks": Case("", CAPTION_PHOTOS.replace("few", "linked")),
    "caption beams": Case("1"),
    "caption length_penalty": Case("3"),
    "caption top_p": Case("0.9"),
    "caption temperature": Case("2", f"{CAPTION} --top-p 0.9"),
    "caption seed": Case("3", f"{CAPTION} --top-p 0.9"),
    "evaluate-captions captions": Case(
        "captions.json", "evaluate-captions --metrics ROUGE-L --resamples 9"
    ),
    "evaluate-captions references": Case("references.jsonl"),
    "evaluate-captions against": Case("captions.json"),
    "evaluate-captions decoder": Case("decoder2"),
    "evaluate-captions metrics": Case("CIDEr"),
    "evaluate-captions resamples": Case("0"),
    "evaluate-captions beams": Case("1"),
    "evaluate-captions limit": Case("3"),
    "evaluate-captions length_penalty": Case("3"),
    "evaluate-captions top_p": Case("0.9"),
    "evaluate-captions temperature": Case("2", f"{EVALUATE} --top-p 0.9"),
    "evaluate-captions seed": Case("3", f"{EVALUATE} --top-p 0.9"),
    "evaluate-captions modality": Case("text", f"{EVALUATE} --references references-of-all.jsonl"),
    "ablate-captions methods": Case("C1"),
    "ablate-captions size": Case("small"),
    "ablate-captions set": Case("dropout=0.5"),
    "ablate-captions beams": Case("1"),
    "ablate-captions metrics": Case("CIDEr"),
    "ablate-captions test_store": Case("other"),
    # generators
    "train-generator preset": Case("c2-corrupt"),
    "train-generator size": Case("small"),
    "train-generator set": Case("learning_rate=0.1"),
    "train-generator train_split": Case("all"),
    "train-generator store": Case("tiny-store"),
    "generate captions": Case("notes.txt", f"{GENERATE} --captions split-captions.jsonl"),
    "generate split": Case("val", f"{GENERATE} --captions split-captions.jsonl"),
    "generate embeddings": Case("eleven.npy"),
    "generate modality": Case("image"),
    "generate images": Case("photos/000000000285.jpg", f"{GENERATE} --image few/000000000285.jpg"),
    "generate generator": Case("generator2"),
    "generate n": Case("2"),
    "generate sampling_steps": Case("2"),
    "generate guidance": Case("3"),
    "evaluate-images split": Case("train"),
    "evaluate-images store": Case(
        "tiny-store", "evaluate-images c3-images --store photos-store --split train"
    ),
    "ablate-images store": Case("tiny-store", f"{ABLATE_IMAGES} --split train"),
    "evaluate-images encoder": Case("local-dir:tiny"),
    "ablate-images methods": Case("C1"),
    "ablate-images split": Case("train"),
    "ablate-images size": Case("small"),
    "ablate-images set": Case("learning_rate=0.1"),
    "ablate-images encoder": Case("local-dir:tiny"),
    # demo
    "demo size": Case("small"),
    "demo captions": Case("10"),
    "demo images": Case(),
}
"""Values to try, by option, or by command or group of commands and option."""

PHOTO = embed("photos/000000000285.jpg")
OF_OTHER_INPUTS = {
    "--captions": f"{embed('notes.txt')} --captions mine.jsonl",
    "--text-column": f"{PHOTO} --text-column other",
    "--image-column": f"{PHOTO} --image-column image",
    "--key-column": f"{PHOTO} --key-column name",
    "--images-root": f"{PHOTO} --images-root photos",
}
"""Lines with an option that only other inputs need."""

ARGUMENTS = {
    "embed paths": Argument("few", "photos"),
    "connect apply heads": Argument("", "other-heads"),
    "connect lit paths": Argument("photos", "more"),
    "connect full paths": Argument("photos", "more"),
    "means load file": Argument("two.safetensors", "m2.safetensors"),
    "caption paths": Argument("few", "photos", line=CAPTION_PHOTOS),
    "generate texts": Argument("dog", "cat", None, f"{GENERATE} dog"),
    "evaluate-images images": Argument("c3-images", "images2"),
    "search text": Argument("dog", "cat", None, "search dog --index mini-index"),
    "merge stores": Argument("other", "texts"),
    "models containing": Argument("", "RN50", None),
    "simulate init-gap paths": Argument("photos", "more"),
}
"""Values of arguments to try, by command and argument."""

TESTED_BY = {
    "embed fps": "tests/embedding/test_videos.py::test_frames_come_at_the_rate",
    "embed truncate_dim": (
        "tests/encoders/test_sentence_transformers.py::test_dimensions_can_be_left_out"
    ),
    "embed query_prompt": (
        "tests/encoders/test_sentence_transformers.py::test_prompts_for_queries_and_documents"
    ),
    "search query_prompt": (
        "tests/encoders/test_sentence_transformers.py::test_prompts_for_queries_and_documents"
    ),
    "search audio": "tests/encoders/test_sentence_transformers.py::test_sounds_and_their_captions",
    "search where": "tests/index/test_conditions.py::test_few_rows_are_searched_exactly",
    "import source": "tests/inputs/test_import_embeddings.py::test_a_pickle_of_c3",
    "push folder": "tests/io/test_hub.py::test_push_and_pull",
    "serve index": (
        "tests/serve/test_app.py::test_the_command_serves_other_names_only_if_it_listens_to_others"
    ),
    "duplicates mark_splits": (
        "tests/curation/test_duplicates.py::test_copies_of_all_splits_are_marked_on_demand"
    ),
    "leave-out tables": (
        "tests/store/test_leave_out.py::test_a_table_names_rows_by_key_with_reasons"
    ),
    "leave-out store": "tests/store/test_leave_out.py::test_a_second_call_adds",
    "leave-out keys": "tests/store/test_leave_out.py::test_a_second_call_adds",
    "leave-out modality": "tests/store/test_leave_out.py::test_a_key_of_two_modalities_needs_one",
    "leave-out reason": "tests/store/test_leave_out.py::test_the_first_reason_counts",
    "leave-out undo": (
        "tests/store/test_leave_out.py::test_undo_takes_all_rows_back_to_the_same_bytes"
    ),
    "leave-out yes": "tests/store/test_leave_out.py::test_more_than_half_of_a_modality_needs_a_yes",
    "leave-out kept": "tests/store/test_kept_list.py::test_what_is_left_is_embedded_again",
    "ablate-captions list_all": "tests/cli/test_words.py::test_commands_say_what_they_made",
    "ablate-images list_all": "tests/cli/test_words.py::test_commands_say_what_they_made",
    "export list_all": "tests/cli/test_words.py::test_commands_say_what_they_made",
    "caption steer": "tests/captioning/test_baselines.py::test_methods_follow_their_formulas",
    "evaluate-captions steer": (
        "tests/captioning/test_baselines.py::test_methods_follow_their_formulas"
    ),
    "import ids": (
        "tests/inputs/test_import_embeddings.py::test_a_list_names_the_image_of_each_text"
    ),
    "merge model": (
        "tests/store/test_merge_split.py"
        "::test_stores_of_unknown_models_are_merged_once_the_model_is_named"
    ),
    "merge keep_first": (
        "tests/store/test_merge_split.py"
        "::test_merged_items_are_in_the_split_of_the_first_store_unless_their_keys_differ"
    ),
    "clusters assign": (
        "tests/clusters/test_clusters.py"
        "::test_new_rows_are_assigned_to_the_centroids_that_are_there"
    ),
    "connect lit train_split": (
        "tests/connect/test_training_pairs.py::test_without_a_val_split_a_tenth_of_the_items_is_held_out"
    ),
    "connect full train_split": (
        "tests/connect/test_training_pairs.py::test_without_a_val_split_a_tenth_of_the_items_is_held_out"
    ),
    "connect apply modalities": (
        "tests/connect/test_training_pairs.py::test_stores_are_paired_with_one_row_per_item_first"
    ),
    "demo photos_to": "tests/demo/test_demo.py::test_photos_can_be_copied_to_start_with",
}
"""Options that need a sound, a server or another library, with the test of their effect."""
