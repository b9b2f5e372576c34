"""Folders saved by `datasets`."""

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from scaling_fl import hf_hub
from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Task
from scaling_fl.data.task_loader import load_task
from scaling_fl.errors import UserError
from tests.data.tasks.topics import TEST, TRAIN

TOPICS = datasets.ClassLabel(names=["sea", "air", "land"])
FEATURES = datasets.Features({"body": datasets.Value("string"), "topic": TOPICS})


def save(folder: Path, features: datasets.Features | None = FEATURES, **splits: dict[str, list[Any]]) -> str:
    saved = {name: datasets.Dataset.from_dict(columns, features=features) for name, columns in splits.items()}
    datasets.DatasetDict(saved).save_to_disk(folder)
    return str(folder)


def load(dataset: str, **keys: object) -> Task:
    keys = {"text_column": "body", "label_column": "topic"} | keys
    return load_task(Config(task_name="hub", dataset=dataset, **keys))  # type: ignore[arg-type]


def test_a_saved_folder_keeps_its_label_names_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load(save(tmp_path / "saved", train=TRAIN, test=TEST))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/saved").digest() == task.digest()
    assert task.label_names == ("sea", "air", "land")
    assert (task.train.texts, task.train.labels.tolist()) == (TRAIN["body"], TRAIN["topic"])
    assert (task.test.texts, task.test.labels.tolist()) == (TEST["body"], TEST["topic"])
    assert task.notes == ("empty training texts (kept): 1 of 5",)


def test_splits_may_be_sliced_and_added(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", train=TRAIN, extra=TEST)
    task = load(folder, train_split="train[:60%]+extra", test_split="train[3:]")
    assert task.train.texts == ["ship", "kite", "road", "wave", "wind"]
    assert task.test.texts == ["", "gull"]


def test_the_partition_column_is_read_from_the_training_split_only(tmp_path: Path) -> None:
    users = datasets.Features({**FEATURES, "user": datasets.Value("int64")})
    train = {**TRAIN, "user": [7, 10, 7, 9, 10]}
    saved = {
        "train": datasets.Dataset.from_dict(train, features=users),
        "test": datasets.Dataset.from_dict(TEST, features=FEATURES),
    }
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    task = load(str(tmp_path / "saved"), partition="column", partition_column="user")
    assert task.train.sites == ["7", "10", "7", "9", "10"]
    by_topic = load(str(tmp_path / "saved"), partition="column", partition_column="topic")
    assert by_topic.train.sites == ["sea", "air", "land", "land", "air"]
    with pytest.raises(
        UserError, match=r"partition_column='town': dataset=.* has no column town; choose from body, topic, user"
    ):
        load(str(tmp_path / "saved"), partition="column", partition_column="town")


def test_a_single_data_set_is_the_split_train(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(TRAIN, features=FEATURES).save_to_disk(tmp_path / "one")
    task = load(str(tmp_path / "one"), train_split="train[:3]", test_split="train[3:]")
    assert (task.train.texts, task.test.texts) == (TRAIN["body"][:3], TRAIN["body"][3:])


def test_splits_that_number_their_labels_differently_are_merged_by_name(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(TEST, features=FEATURES).save_to_disk(tmp_path / "saved" / "train")
    other = FEATURES | {"topic": datasets.ClassLabel(names=["air", "fire", "sea"])}
    more = datasets.Dataset.from_dict({"body": ["blaze", "fish"], "topic": [1, 2]}, features=datasets.Features(other))
    more.save_to_disk(tmp_path / "saved" / "more")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "more"]}')
    task = load(str(tmp_path / "saved"), train_split="train+more", test_split="more")
    assert task.label_names == ("sea", "air", "land", "fire")
    assert [task.label_names[label] for label in task.train.labels] == ["sea", "air", "fire", "sea"]
    assert [task.label_names[label] for label in task.test.labels] == ["fire", "sea"]


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas"])
def test_the_format_that_a_data_set_was_saved_with_does_not_matter(tmp_path: Path, form: str) -> None:
    data = datasets.Dataset.from_dict(TRAIN, features=FEATURES).with_format(form, columns=["topic"])
    data.save_to_disk(tmp_path / "saved")
    task = load(str(tmp_path / "saved"), test_split="train")
    assert (task.train.texts, task.train.labels.tolist()) == (TRAIN["body"], TRAIN["topic"])


def test_label_names_that_look_like_numbers_are_kept_verbatim(tmp_path: Path) -> None:
    features = datasets.Features({"body": datasets.Value("string"), "topic": datasets.ClassLabel(names=["1.0", "0.5"])})
    split = {"body": ["a", "b"], "topic": [0, 1]}
    task = load(save(tmp_path / "saved", features, train=split, test=split))
    assert (task.label_names, task.train.labels.tolist()) == (("1.0", "0.5"), [0, 1])


def test_an_incomplete_saved_folder_is_refused(tmp_path: Path) -> None:
    saved = datasets.DatasetDict({n: datasets.Dataset.from_dict(TRAIN, features=FEATURES) for n in ("train", "test")})
    saved.save_to_disk(tmp_path / "saved", num_shards={"train": 3, "test": 1})
    (tmp_path / "saved" / "train" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(UserError, match=r"cannot load it: FileNotFoundError: .*data-00001-of-00003\.arrow"):
        load(str(tmp_path / "saved"))


def test_unnamed_labels_and_pairs_are_read_as_from_files(tmp_path: Path) -> None:
    train = {"a": ["x", "y"], "b": ["u", "v"], "label": ["yes", "no"]}
    folder = save(tmp_path / "saved", None, train=train, test=train)
    task = load(folder, text_column="a", text_pair_column="b", label_column="label")
    assert (task.label_names, task.train.labels.tolist(), task.train.pairs) == (("no", "yes"), [1, 0], ["u", "v"])


def test_a_folder_of_files_is_read_as_datasets_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    for name, columns in (("train", TRAIN), ("test", TEST)):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "files" / f"{name}.parquet")
    task = load(str(tmp_path / "files"))
    assert (task.label_names, task.train.texts, task.test.texts) == (("0", "1", "2"), TRAIN["body"], TEST["body"])


@pytest.mark.parametrize(
    ("train", "keys", "message"),
    [
        (TRAIN, {"train_split": "dev"}, r'train_split=dev: Unknown split "dev". Should be one of .*train.*test'),
        (TRAIN, {"test_split": "train[9"}, r"test_split=train\[9: Unrecognized instruction format"),
        (TRAIN, {"test_split": "train[:0]"}, r"test_split=train\[:0\]: it selects no rows"),
        (
            TRAIN,
            {"text_column": "text"},
            r"text_column='text': dataset=.*, split train has no column text; choose from body",
        ),
        (TRAIN, {"label_column": "kind"}, r"label_column='kind': .* has no column kind; choose from body, topic"),
        (TRAIN | {"topic": [0, 1, -1, 0, 1]}, {}, "row 2, column topic: expected 0 to 2, found -1; .* withheld labels"),
        (TRAIN, {"train_split": "train[7:]"}, r"train_split=train\[7:\]: it selects no rows"),
        (TRAIN, {"dataset_config": "x"}, "dataset_config='x': the folder .* holds one data set; leave it out"),
        (
            TRAIN | {"topic": [0, 1, None, 0, 1]},
            {},
            r"split train \(rows from 0\), row 2, column topic: the label is em",
        ),
        (TRAIN | {"body": ["a", None, "b", "c", "d"]}, {}, r"row 1, column body: expected text, found nothing"),
        (TRAIN | {"topic": [1] * 5}, {}, r"saved: every row has the label 'air'"),
    ],
)
def test_invalid_data_and_keys_are_refused(
    tmp_path: Path, train: dict[str, list[Any]], keys: dict[str, str], message: str
) -> None:
    folder = save(tmp_path / "saved", train=train, test=TEST)
    with pytest.raises(UserError, match=message):
        load(folder, **keys)


def test_numbers_with_decimals_are_refused(tmp_path: Path) -> None:
    scores = {"body": ["a", "b"], "topic": [0.5, 3.0]}
    with pytest.raises(UserError, match=r"row 0, column topic: the label is the number 0\.5; .* regression"):
        load(save(tmp_path / "saved", None, train=scores, test=scores))


@pytest.mark.parametrize("before", [(False, False), (True, True), (False, True)])
def test_offline_mode_is_as_before_once_the_cache_was_read_instead_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, before: tuple[bool, bool]
) -> None:
    def offline() -> tuple[bool, bool]:
        return huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE

    def unreachable(*_: str) -> None:
        raise hf_hub.Unreachable("no answer")

    def from_cache(name: str, configuration: str | None) -> datasets.DatasetDict:
        assert offline() == (True, True), "or the library would ask the hub again and again"
        if name == "lab/none":
            raise ConnectionError("not in the cache")
        return datasets.DatasetDict(
            {"train": datasets.Dataset.from_dict(TRAIN), "test": datasets.Dataset.from_dict(TEST)}
        )

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", before[0])
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", before[1])
    monkeypatch.setattr(hf_hub, "check_exists", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", from_cache)
    assert load("lab/news").train.texts == TRAIN["body"]
    assert offline() == before
    with pytest.raises(UserError, match=r"no answer \(on this machine: ConnectionError: not in the cache\)"):
        load("lab/none")
    assert offline() == before


def test_missing_and_empty_folders_are_refused_at_once(tmp_path: Path) -> None:
    for name in ("./typo", "/no/such", "~/no", "a/b/c"):
        with pytest.raises(UserError, match=f"dataset={name}: there is no such folder"):
            load(name)
    with pytest.raises(UserError, match=rf"dataset={tmp_path}: cannot load it: EmptyDatasetError"):
        load(str(tmp_path))


@pytest.mark.parametrize("reachable", [True, False])
def test_the_configuration_of_a_data_set_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    """From the hub, from the library's cache, and from a folder of files."""
    asked: list[tuple[str, str | None]] = []

    def check_exists(*_: str) -> None:
        if not reachable:
            raise hf_hub.Unreachable("no answer")

    def load_dataset(name: str, configuration: str | None = None) -> datasets.DatasetDict:
        asked.append((name, configuration))
        return datasets.DatasetDict(
            {"train": datasets.Dataset.from_dict(TRAIN), "test": datasets.Dataset.from_dict(TEST)}
        )

    monkeypatch.setattr(hf_hub, "check_exists", check_exists)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("lab/news", str(tmp_path)):
        load(name, dataset_config="english")
    assert asked == [("lab/news", "english"), (str(tmp_path), "english")]
