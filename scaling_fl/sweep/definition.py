"""The definition of a sweep, in a YAML file or on the command line, as cells: configurations of one job each."""

import ast
import itertools
import math
import random
import re
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from scaling_fl.config.command_line import NAMED_CONFIGS
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.sweep.cells import Cell, named_cells
from scaling_fl.text import one_line

_SECTIONS: dict[str, Any] = {
    "name": str,
    "base": dict,
    "grid": dict,
    "zip": (dict, list),
    "cases": dict,
    "random": dict,
    "exclude": list,
    "slurm": dict,
}
_EXPECTED = {
    "name": "text", "base": "keys and values", "grid": "keys with lists of values", "zip": "keys with lists of values",
    "cases": "names with keys and values", "random": "count, seed and keys", "exclude": "a list of rules", "slurm": "parameters and values",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_MAX_CELLS = 10_000
_DISTRIBUTIONS = ("choice", "uniform", "log_uniform", "integer")


@dataclass
class Definition:
    """What a file says: see docs/sweeps.md."""

    name: str = "sweep"
    base: dict[str, Any] = field(default_factory=dict)  # the same in all cells
    grid: dict[str, list[Any]] = field(default_factory=dict)  # all combinations
    zip: list[dict[str, list[Any]]] = field(default_factory=list)  # groups of lists of one length, varied together
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name: keys that belong together
    random: dict[str, Any] = field(default_factory=dict)  # {count, seed, keys: {key: {distribution: values}}}
    exclude: list[dict[str, Any]] = field(default_factory=list)  # cells that match one of these are left out
    slurm: dict[str, Any] = field(default_factory=dict)  # parameters of submitit

    def cells(self) -> list[Cell]:
        """The cells in order, with validated configurations. Raises `UserError` if one is invalid."""
        rows = list(itertools.islice(self._varied(), _MAX_CELLS + 1))
        if len(rows) > _MAX_CELLS:
            raise UserError(f"sweep {self.name}: it has more than {_MAX_CELLS:,} cells; make it smaller")
        if not rows:
            raise UserError(f"sweep {self.name}: `exclude` leaves no cell; correct it")
        zipped = [tuple(group) for group in self.zip]
        return named_cells(self.name, self.base, rows, zipped, self.cases)

    def _varied(self) -> Iterator[dict[str, Any]]:
        grid = [dict(zip(self.grid, row, strict=True)) for row in itertools.product(*self.grid.values())]
        groups = [
            [dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)] for group in self.zip
        ]
        cases = [{"case": name} for name in self.cases] or [{}]
        for parts in itertools.product(cases, *groups, grid, self._draws()):
            row = {key: value for part in parts for key, value in part.items()}
            keys = self.base | self.cases.get(row.get("case", ""), {}) | row
            if not any(_matches(rule, keys) for rule in self.exclude):
                yield row

    def _draws(self) -> list[dict[str, Any]]:
        if not self.random:
            return [{}]
        generator = random.Random(self.random["seed"])
        keys = self.random["keys"]
        return [{key: _draw(generator, *spec) for key, spec in keys.items()} for _ in range(self.random["count"])]


def load(path: Path) -> Definition:
    """Read a definition. Raises `UserError` if it isn't one."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected a sweep as YAML, found an error ({one_line(str(error), 200)})") from error
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: expected the sections of a sweep, such as grid, found {type(values).__name__}")
    for name, value in values.items():
        if name not in _SECTIONS:
            raise UserError(
                f"{path}: {name}: expected one of {', '.join(_SECTIONS)}; keys of jobs belong in base or grid"
            )
        if not isinstance(value, _SECTIONS[name]):
            raise UserError(f"{path}: {name}: expected {_EXPECTED[name]}, found {type(value).__name__}")
    found = Definition(**({"name": path.stem} | dict(values)))
    found.zip = [found.zip] if isinstance(found.zip, dict) else found.zip
    _check(found, str(path))
    return found


def updated(found: Definition, words: Sequence[str], name: str | None = None) -> Definition:
    """The definition with the keys of the command line: key=value, key=[value,value], or a named configuration."""
    hints = typing.get_type_hints(Config)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            if word not in NAMED_CONFIGS:
                raise UserError(f"{word}: expected key=value, or one of {', '.join(NAMED_CONFIGS)}")
            found.base |= NAMED_CONFIGS[word]
            continue
        value = _value(text)
        if key == "case" and found.cases:
            found.cases = _chosen_cases(found.cases, value if isinstance(value, list) else [value])
            continue
        if setting := [name for name, keys in found.cases.items() if key in keys]:
            raise UserError(f"{word}: case {setting[0]} sets {key} itself; leave it out, or change the file")
        for place in (found.base, found.grid, *found.zip, found.random.get("keys", {})):
            place.pop(key, None)
        found.zip = [group for group in found.zip if group]
        is_list = typing.get_origin(hints.get(key)) is tuple  # such as site_ids, whose value is a list itself
        several = isinstance(value, list) and (not is_list or any(isinstance(item, list) for item in value))
        (found.grid if several else found.base)[key] = value
    found.name = name or found.name
    _check(found, "the command line" if not words else " ".join(words))
    return found


def _chosen_cases(cases: dict[str, dict[str, Any]], names: Sequence[Any]) -> dict[str, dict[str, Any]]:
    if unknown := [name for name in names if name not in cases]:
        raise UserError(f"case={unknown[0]}: no such case; the cases are {one_line(', '.join(cases), 200)}")
    return {name: cases[name] for name in names}


def _check(found: Definition, place: str) -> None:
    if not _NAME.fullmatch(found.name):
        raise UserError(f"name={found.name}: expected up to 60 letters, digits, '.', '_' and '-'; set another name")
    if not all(isinstance(group, dict) and group for group in found.zip):
        raise UserError(f"{place}: zip: expected keys with lists, or a list of such groups, found {found.zip!r}")
    for section, group in [("grid", found.grid), *(("zip", group) for group in found.zip)]:
        for key, values in group.items():
            if not isinstance(values, list) or not values:
                raise UserError(f"{place}: {section}.{key}: expected a list of values; a single value belongs in base")
    for group in found.zip:
        lengths = {key: len(values) for key, values in group.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{place}: zip: expected lists of one length, found {lengths}")
    if found.random:
        draws = {"seed": 1} | found.random
        if draws.keys() != {"count", "seed", "keys"} or not isinstance(draws["keys"], dict):
            raise UserError(f"{place}: random: expected count, seed and keys, found {', '.join(found.random)}")
        for key, given in draws["keys"].items():
            spec = given if isinstance(given, tuple) else _distribution(place, key, given)
            draws["keys"][key] = spec
        found.random = draws
    for name, keys in found.cases.items():
        if not isinstance(name, str) or not isinstance(keys, dict):
            raise UserError(f"{place}: cases.{name}: expected keys and values, or {{}}, found {keys!r}")
    in_cases = {key for keys in found.cases.values() for key in keys} | ({"case"} if found.cases else set())
    varied = Counter(key for part in (found.grid, *found.zip, found.random.get("keys", {}), in_cases) for key in part)
    if twice := [key for key, number in varied.items() if number > 1]:
        raise UserError(f"{place}: {twice[0]} is varied twice; leave it in one of grid, zip, cases and random")
    for rule in found.exclude:
        if not isinstance(rule, dict) or not rule:
            raise UserError(f"{place}: exclude: expected keys and values, such as {{num_sites: 32}}, found {rule!r}")


def _distribution(place: str, key: str, given: Any) -> tuple[str, list[Any]]:
    name, values = next(iter(given.items())) if isinstance(given, dict) and len(given) == 1 else ("", None)
    if name in _DISTRIBUTIONS and isinstance(values, list) and values:
        if name == "choice":
            return name, values
        try:
            least, most = map(float, values)  # YAML takes 1e-3 for text
            if least <= most and (name != "log_uniform" or least > 0):
                return name, [int(least), int(most)] if name == "integer" else [least, most]
        except (TypeError, ValueError):
            pass
    raise UserError(
        f"{place}: random.{key}: expected one of choice: [a, b, …], uniform, log_uniform or integer: [least, most], "
        f"found {given!r}"
    )


def _draw(generator: random.Random, distribution: str, values: list[Any]) -> Any:
    match distribution:
        case "choice":
            return generator.choice(values)
        case "integer":
            return generator.randint(*values)
        case "uniform":
            return float(f"{generator.uniform(*values):.4g}")  # as many digits as a name can hold
    return float(f"{math.exp(generator.uniform(*map(math.log, values))):.4g}")


def _matches(rule: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
    """Whether each key of the rule has the value, or one of the values, that the rule names."""
    return all(keys.get(key) in (value if isinstance(value, list) else [value]) for key, value in rule.items())


def _value(text: str) -> Any:
    """A value of the command line: a literal, a list of words such as [bert,distilbert], or text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text.startswith("[") and text.endswith("]"):
            return [_value(part.strip()) for part in text[1:-1].split(",")]
        return text
