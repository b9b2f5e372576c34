import csv
import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from scaling_fl.commands import evaluate
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated import metrics
from scaling_fl.text import num_columns
from tests import builders
from tests.conftest import ObjectStore
from tests.models import architectures

NAMES = ("class 0", "class 1", "class 2")


def lines_of(config: Config) -> list[str]:
    lines: list[str] = []
    evaluate.show(MagicMock(side_effect=lambda event: lines.append(event.get("text", ""))), config, 120)
    return lines


def expected(module: Any, path: Path, padding: str | bool) -> tuple[float, np.ndarray, list[float]]:
    """Mean loss, confusion matrix and probability of each prediction, by a plain loop over the rows of a file."""
    losses, probabilities, confusion = [], [], np.zeros((3, 3), np.int64)
    with open(path, newline="") as file, torch.inference_mode():
        for row in csv.DictReader(file):
            how = {"padding": padding, "truncation": True, "max_length": 16, "return_tensors": "pt"}
            batch = builders.tokenizer()(row["body"], **how)
            masks = {} if module.config.model_type == "fnet" else {"attention_mask": batch["attention_mask"]}
            logits = module(input_ids=batch["input_ids"], **masks).logits
            label = NAMES.index(row["topic"])
            losses.append(cross_entropy(logits, torch.tensor([label])).item())
            confusion[label, logits.argmax()] += 1
            probabilities.append(logits.softmax(-1).max().item())
    return float(np.mean(losses)), confusion, probabilities


def check(lines: list[str], predictions: Path, module: Any, path: Path, padding: str | bool = False) -> None:
    loss, confusion, probabilities = expected(module, path, padding)
    figures = f"loss {loss:.4f}, accuracy {np.trace(confusion) / confusion.sum():.4f}, macro F1 {metrics.macro_f1(confusion):.4f}"
    assert figures in lines
    matrix = lines.index("confusion matrix: a row for each true label, a column for each predicted one")
    assert [line.split()[-3:] for line in lines[matrix + 2 : matrix + 5]] == confusion.astype(str).tolist()
    with open(predictions, newline="") as file:
        found = list(csv.DictReader(file))
    with open(path, newline="") as file:
        given = list(csv.DictReader(file))
    assert [(row["text"], row["label"]) for row in found] == [(row["body"], row["topic"]) for row in given]
    assert [row["row"] for row in found] == [str(number) for number in range(1, len(given) + 1)]
    assert [float(row["probability"]) for row in found] == pytest.approx(probabilities, abs=1e-4)
    again = np.zeros((3, 3), np.int64)
    np.add.at(again, tuple([NAMES.index(row[key]) for row in found] for key in ("label", "predicted")), 1)
    assert np.array_equal(again, confusion)


def test_a_checkpoint_is_measured_with_the_keys_of_its_job(job: tuple[Config, Any], tmp_path: Path) -> None:
    config, module = job
    path = f"{config.checkpoints_dir}/round-000007.safetensors"
    lines = lines_of(Config(checkpoint=path, csv_path=str(tmp_path / "own.csv"), threads_per_site=1))
    assert f"checkpoint {config.checkpoints_dir}: round 7 of job j, model={config.model}" in lines
    assert f"task csv, {config.test_path}: 9 test rows; max_seq_len=16" in lines
    check(lines, tmp_path / "own.csv", module, Path(str(config.test_path)))
    # Another file, without some of the labels.
    rows = [f"class {label},{text}" for text, label in zip(*builders.texts_and_labels(30, 9), strict=True) if label]
    (tmp_path / "new.csv").write_text("\n".join(["topic,body", *rows]))
    lines = lines_of(Config(checkpoint=path, test_path=str(tmp_path / "new.csv"), csv_path=str(tmp_path / "p.csv")))
    check(lines, tmp_path / "p.csv", module, tmp_path / "new.csv")
    assert any(line.split() == ["0", "class", "0", "0", *line.split()[4:5], "0.000", "–", "0.000"] for line in lines)


def test_a_model_folder_is_measured_with_the_keys_that_are_typed(job: tuple[Config, Any], tmp_path: Path) -> None:
    config, module = job
    module.save_pretrained(tmp_path / "saved")
    builders.tokenizer().save_pretrained(tmp_path / "saved")
    typed = dataclasses.replace(config, checkpoint=str(tmp_path / "saved"), csv_path=str(tmp_path / "p.csv"))
    check(lines_of(typed), tmp_path / "p.csv", module, Path(str(config.test_path)))


def test_the_progress_counts_all_texts_up_to_now(job: tuple[Config, Any]) -> None:
    config, _ = job
    path = f"{config.checkpoints_dir}/round-000007.safetensors"
    send = MagicMock()
    evaluate.show(send, Config(checkpoint=path, val_batch_size=4, threads_per_site=1), 120)
    events = [call.args[0] for call in send.call_args_list]
    steps = [event for event in events if event["event"] == "working" and event["what"] == "evaluating"]
    assert [(step["done"], step["total"], step["unit"]) for step in steps] == [(done, 9, "texts") for done in (4, 8, 9)]


@pytest.mark.parametrize(("typed", "used"), [(128, 16), (16, 16), (12, 12)])
def test_a_model_folder_says_how_many_tokens_it_takes_at_most(
    job: tuple[Config, Any], tmp_path: Path, typed: int, used: int
) -> None:
    """Its tokenizer says so, as those that jobs export do; the default of the key is 128."""
    config, module = job
    module.save_pretrained(tmp_path / "saved")
    tokenizer = builders.tokenizer()
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(tmp_path / "saved")
    lines = lines_of(dataclasses.replace(config, checkpoint=str(tmp_path / "saved"), max_seq_len=typed))
    assert any(line.endswith(f"9 test rows; max_seq_len={used}") for line in lines)


@pytest.mark.parametrize(("kind", "padding"), [("fnet", "max_length"), ("xlnet", False)])
def test_a_model_whose_results_depend_on_padding_is_measured_as_in_a_run(
    small_config: Config, tmp_path: Path, kind: str, padding: str | bool
) -> None:
    """fnet reads padding, so texts have full length; xlnet's logits are those of a text alone if padding is on the left."""
    module = architectures.build(kind, initializer_range=1.0).eval()
    module.config.id2label = dict(enumerate(NAMES))
    module.save_pretrained(tmp_path / "saved")
    builders.tokenizer().save_pretrained(tmp_path / "saved")
    test = Path(str(small_config.test_path))
    test.write_text(test.read_text() + "class 0,a\n")  # a short text beside longer ones
    typed = dataclasses.replace(small_config, checkpoint=str(tmp_path / "saved"), csv_path=str(tmp_path / "p.csv"))
    check(lines_of(typed), tmp_path / "p.csv", module, test, padding)


def test_a_model_folder_in_an_object_store_is_measured(
    job: tuple[Config, Any], object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, module = job
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    module.save_pretrained(tmp_path / "saved")
    builders.tokenizer().save_pretrained(tmp_path / "saved")
    url = f"{object_store.bucket}/model"
    for path in (tmp_path / "saved").iterdir():
        object_store.fs.put_file(str(path), f"{url}/{path.name}")
    typed = dataclasses.replace(config, checkpoint=url, csv_path=str(tmp_path / "p.csv"))
    lines = lines_of(typed)
    assert f"model {url}" in lines
    check(lines, tmp_path / "p.csv", module, Path(str(config.test_path)))
    with pytest.raises(UserError, match=r"checkpoint=.*/nothing: there are no files; correct the path"):
        lines_of(dataclasses.replace(typed, checkpoint=f"{object_store.bucket}/nothing", csv_path=None))


def test_a_model_without_label_names_takes_those_of_the_task(job: tuple[Config, Any], tmp_path: Path) -> None:
    config, module = job
    module.config.id2label = {number: f"LABEL_{number}" for number in range(3)}
    module.save_pretrained(tmp_path / "saved")
    builders.tokenizer().save_pretrained(tmp_path / "saved")
    lines = lines_of(dataclasses.replace(config, checkpoint=str(tmp_path / "saved")))
    assert (
        "note: the model's labels have no names; they are taken to be class 0, class 1, class 2, in this order" in lines
    )
    for number, names in ((2, (0, 2)), (4, (0, 1, 2, 3))):
        other = tmp_path / f"{number}.csv"
        other.write_text("topic,body\n" + "".join(f"class {name},a\n" for name in names))
        message = f"its 3 labels have no names, and the test rows have {number} labels; name them in id2label"
        with pytest.raises(UserError, match=message):
            lines_of(dataclasses.replace(config, checkpoint=str(tmp_path / "saved"), test_path=str(other)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"checkpoint": "{folder}/model", "max_seq_len": 16},
            r"its weights lack classifier\.bias, classifier\.weight, so it isn't a trained",
        ),
        (
            {"checkpoint": "{out}"},
            r"checkpoint=.*out: expected .*, found a folder without config\.json; name such a file",
        ),
        (
            {"checkpoint": "{folder}/other.cvs"},
            r"^checkpoint=.*other\.cvs: there is no such file or folder \(did you mean .*other\.csv\?\); name a checkpoint",
        ),
        (
            {"checkpoint": "{folder}/other.csv"},
            r"expected a checkpoint \(.*\) or the folder of a trained model, found another file",
        ),
        ({"model": "tiny"}, "the data have changed since the job started"),
        (
            {"test_path": "{folder}/other.csv"},
            "test rows have the label 'class 9', but the model's labels are class 0, cl",
        ),
        ({"csv_path": "{folder}/train.csv"}, r"csv_path=.*train\.csv: it exists; choose another name"),
        ({"csv_path": "{folder}/no/p.csv"}, "there is no folder"),
        ({"csv_path": "s3://lab/p.csv"}, "expected a local file"),
    ],
)
def test_unsuitable_keys_are_refused_in_one_line(
    job: tuple[Config, Any], tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    (tmp_path / "other.csv").write_text("topic,body\nclass 0,a\nclass 9,b\n")
    if keys.get("model") == "tiny":
        Path(str(job[0].train_path)).write_text("topic,body\nclass 0,a\nclass 1,b\nclass 2,c\n")
    out = str(job[0].checkpoints_dir)
    typed = {"checkpoint": f"{out}/round-000007.safetensors"} | keys
    filled = {k: v.format(out=out, folder=tmp_path) if isinstance(v, str) else v for k, v in typed.items()}
    with pytest.raises(UserError, match=message) as refusal:
        lines_of(Config.from_mapping(filled))
    assert "\n" not in str(refusal.value)


def test_many_labels_are_abridged_to_the_most_frequent_confusions() -> None:
    confusion = np.diag(np.arange(40))
    confusion[3, 5], confusion[7, 1] = 4, 9
    rows = confusion.sum()
    results = {"validation.loss": 1.0, "validation.accuracy": np.trace(confusion) / rows, "validation.macro_f1": 0.5}
    lines = evaluate.describe(results, confusion, [f"label {number}" for number in range(40)])
    assert "    … and 10 more labels" in lines
    assert [line.strip() for line in lines[-2:]] == ["9  label 7 → label 1", "4  label 3 → label 5"]
    # label 3: 3 of 7 rows found, and all 3 predictions right; F1 = 2 × 3 / (7 + 3)
    assert any(line.split() == ["3", "label", "3", "7", "3", "1.000", "0.429", "0.600"] for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("num_labels", [2, 12, 40])
def test_rows_fit_the_terminal_and_a_wide_matrix_comes_in_blocks(width: int, num_labels: int) -> None:
    names = [f"Business and Industry, all categories of 新闻 {number}" for number in range(num_labels)]
    confusion = np.arange(num_labels**2).reshape(num_labels, num_labels) * 997
    results = {"validation.loss": 1.0, "validation.accuracy": 0.5, "validation.macro_f1": 0.5}
    lines = evaluate.describe(results, confusion, names, width)
    rows = [line for line in lines if not line.startswith(("loss", "confusion matrix", "most frequent"))]
    assert all(num_columns(line) <= width for line in rows), max(rows, key=num_columns)
    shown = range(min(num_labels, 30))
    assert [line.split()[1:3] for line in rows[2 : 2 + len(shown)]] == [["…", str(label)] for label in shown]
    if num_labels <= 12:
        start = next(n for n, line in enumerate(lines) if line.startswith("confusion matrix")) + 1
        blocks = [block.split("\n") for block in "\n".join(lines[start:]).split("\n\n")]
        assert [int(head) for block in blocks for head in block[0].split()] == list(shown)
        for label in shown:
            cells = [cell for block in blocks for cell in block[1 + label].split()[3:]]
            assert [int(cell.replace(",", "")) for cell in cells] == confusion[label].tolist()
