"""Docstrings of Python's standard library, classified by the purpose of their module: real text without a download."""

import ast
import sysconfig
from pathlib import Path

import numpy as np

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Split, Task
from scaling_fl.errors import UserError
from scaling_fl.progress import Report

NEEDS = TAKES = ()

# In Python 3.11 and later; modules that some distributions package separately (tkinter) are left out.
FAMILIES = {
    "concurrency": "asyncio concurrent contextvars multiprocessing queue sched selectors subprocess threading",
    "data": "_collections_abc _pydecimal bisect calendar collections copy csv dataclasses datetime decimal enum "
    "fractions functools heapq json numbers operator random statistics",
    "development": "argparse ast bdb cmd dis doctest inspect logging optparse pdb pstats pydoc symtable trace "
    "traceback tracemalloc unittest warnings",
    "files": "_pyio bz2 codecs configparser dbm encodings filecmp fileinput fnmatch genericpath glob gzip io lzma "
    "ntpath os pathlib pickle posixpath shelve shutil sqlite3 stat tarfile tempfile zipfile",
    "internet": "email ftplib html http imaplib ipaddress mailbox mimetypes poplib smtplib socket socketserver ssl "
    "urllib webbrowser wsgiref xmlrpc",
}
TEST_SHARE = 0.2
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def load(config: Config, report: Report) -> Task:
    """One example per distinct docstring of four words or more; a seeded fifth of them is the test set."""
    family_of: dict[str, int] = {}
    for number, modules in enumerate(FAMILIES.values()):
        for module in modules.split():
            for docstring in _docstrings(Path(sysconfig.get_paths()["stdlib"]), module):
                family_of.setdefault(docstring, number)
    if not family_of:
        raise UserError("task_name=demo: this Python lacks the source files of its standard library; use task_name=csv")
    examples = Split(list(family_of), np.array(list(family_of.values()), np.int64))
    order = seeding.generator(config.data_seed, "demo").permutation(len(examples))
    num_test = round(TEST_SHARE * len(examples))
    return Task(examples.take(order[num_test:]), examples.take(order[:num_test]), tuple(FAMILIES))


def _docstrings(library: Path, module: str) -> list[str]:
    files = [library / f"{module}.py", *sorted((library / module).rglob("*.py"))]
    found = []
    for file in files:
        if not file.is_file() or {"test", "tests"} & set(file.relative_to(library).parts):
            continue
        for node in _statements(ast.parse(file.read_bytes())):
            docstring = ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None
            if docstring and len(docstring.split()) >= 4:
                found.append(docstring)
    return found


def _statements(module: ast.Module) -> list[ast.AST]:
    """The module and all of its statements, in the order of `ast.walk`, which would look into their expressions as well."""
    found: list[ast.AST] = [module]
    for node in found:  # the list grows
        for name in ("body", "cases", "handlers", "orelse", "finalbody"):
            found += getattr(node, name, ())
    return found
