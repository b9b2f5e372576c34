"""The keys by section, with default and help text: for `train_federated.py help`, and for docs/configuration.md."""

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scaling_fl.config.command_line import NAMED_CONFIGS
from scaling_fl.config.key_names import meant
from scaling_fl.config.schema import Config
from scaling_fl.config.sections.commands import COMMANDS

_INTRODUCTION = (
    "Write keys after `with`, as key=value, lists without spaces. A key with the default None is not set. "
    "`help KEY` also shows the valid values; docs/configuration.md has the same list."
)


def as_command_line(value: object) -> str:
    """A value as it is written on the command line."""
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)


def sections(config: type = Config) -> Iterator[tuple[str, list["dataclasses.Field[Any]"]]]:
    """The heading and the keys of each class that defines keys, in the order of definition."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for owner in config.__mro__:
        # An overridden key belongs to the class that overrides it.
        own = [fields.pop(name) for name in inspect.get_annotations(owner) if name in fields]
        if own:
            yield _heading(owner), own


def asked_for(words: Sequence[str], overview: str) -> str:
    """The help that a command line asks for: `overview`, all keys or some; "" if it asks for none, or names no key."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    width = min(shutil.get_terminal_size().columns, 120)
    if not words or {"-h", "--help"} & set(words) or words == ["help", "help"]:
        return overview.rstrip()
    if words[0] == "help" and len(words) == 2 and words[1] in NAMED_CONFIGS:
        keys = (f"{key}={as_command_line(value)}" for key, value in NAMED_CONFIGS[words[1]].items())
        return f"with {words[1]} stands for\n" + textwrap.fill(
            " ".join(keys), width, initial_indent="  ", subsequent_indent="  "
        )
    if words[0] != "help" or not fields.keys() >= set(words[1:]):
        return ""
    if words[1:]:
        return "\n".join(_entry(fields[name], width, with_valid=True) for name in words[1:])
    parts = [textwrap.fill(_INTRODUCTION, width)]
    for heading, own in sections():
        parts += [heading.upper(), "\n".join(_entry(field, width) for field in own)]
    return "\n\n".join(parts)


def compared_with_defaults(config: Config, resolved: Mapping[str, Any]) -> Iterator[str]:
    """Indented lines `key = value`, with the resolved values; the default of a key follows if `config` sets another value."""
    typed, defaults = config.to_mapping(), Config().to_mapping()
    for key, value in resolved.items():
        default = f"  (default: {defaults[key]!r})" if typed[key] != defaults[key] else ""
        yield f"  {key} = {value!r}{default}"


def on_command(words: Sequence[str], commands: Mapping[str, Any]) -> str:
    """The help on the first word, a command. Exits with a message if there is no such command."""
    if words[0] not in commands:
        raise SystemExit(f"help {words[0]}: {unknown(words[0])}")
    return f"{words[0]}\n  {inspect.getdoc(commands[words[0]])}"


def unknown(word: str) -> str:
    """What to tell a user who asked for help on a word that is neither a key nor a command."""
    close = meant(word, [field.name for field in dataclasses.fields(Config)])
    hint = f"did you mean {close}?" if close else "`help` lists the keys, `--help` the commands"
    return f"there is no such key or command; {hint}"


def _heading(owner: type) -> str:
    """The first line of the class's docstring, without its full stop; its name if it has no docstring."""
    doc = inspect.cleandoc(owner.__doc__ or "")
    if not doc or doc.startswith(f"{owner.__name__}("):  # written by @dataclass
        return owner.__name__
    return doc.splitlines()[0].rstrip(".")


def _entry(field: "dataclasses.Field[Any]", width: int, with_valid: bool = False) -> str:
    texts = [field.metadata["help"]]
    if with_valid and field.metadata["expected"]:
        texts.append(f"valid: {field.metadata['expected']}")
    if with_valid and field.name in COMMANDS:
        texts.append(f"({field.name} is also a command: see --help.)")
    wrap = textwrap.TextWrapper(width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    return "\n".join([f"  {field.name}={as_command_line(field.default)}", *map(wrap.fill, texts)])
