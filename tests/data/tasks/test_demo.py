import ast
import inspect
import sysconfig
from pathlib import Path

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task
from scaling_fl.data.tasks import demo
from scaling_fl.errors import UserError


def test_the_standard_library_yields_thousands_of_distinct_docstrings() -> None:
    task = load_task(Config(task_name="demo"))
    texts = task.train.texts + task.test.texts
    assert len(texts) > 3000
    assert len(set(texts)) == len(texts), "no text is in train and test"
    assert len(task.test) == round(0.2 * len(texts))
    assert task.label_names == ("concurrency", "data", "development", "files", "internet")
    assert all((split.labels == label).sum() > 50 for split in (task.train, task.test) for label in range(5))
    assert task.digest() == load_task(Config(task_name="demo")).digest()
    assert task.digest() != load_task(Config(task_name="demo", data_seed=1)).digest()


def test_statements_are_those_of_the_standard_library_in_its_order() -> None:
    kinds = (ast.Module, ast.stmt, ast.excepthandler, ast.match_case)
    code = "if a:\n  try: b = [c for c in d]\n  except E: match x:\n    case 1: e\nelse:\n  with f: g = lambda: h\n"
    for source in (code.replace("except E: ", "except E:\n   "), *(inspect.getsource(m) for m in (ast, inspect))):
        module = ast.parse(source)
        assert demo._statements(module) == [node for node in ast.walk(module) if isinstance(node, kinds)]
    library = Path(sysconfig.get_paths()["stdlib"])
    assert "Return the docstring for the given node" in " ".join(demo._docstrings(library, "ast"))


def test_keys_of_files_are_refused() -> None:
    with pytest.raises(UserError, match="task_name=demo doesn't use it; it takes none of these keys"):
        load_task(Config(task_name="demo", train_path="x.csv"))
