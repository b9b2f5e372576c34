"""Sacred's flags: which words of a command line belong to them, and which values are refused at once.

Sacred applies a flag after the data are read and the model is loaded. A mistake would show only then.
"""

import getopt
import logging
from collections.abc import Sequence

from scaling_fl.config.key_names import meant
from scaling_fl.errors import UserError

# Short and long form in the notation of getopt: a colon or = marks a flag with a value. A test compares with Sacred.
_SHORT = "b:C:c:deF:fhi:l:m:n:DpP:qS:s:t:u"
_LONG = [
    "beat-interval=", "capture=", "comment=", "debug", "enforce_clean", "file_storage=", "force", "help", "id=",
    "loglevel=", "mongo_db=", "name=", "pdb", "print-config", "priority=", "queue", "s3=", "sql=", "tiny_db=", "unobserved",
]  # fmt: skip
_ELSEWHERE = "records go to runs/, and to MongoDB as .env says; -F FOLDER and -m HOST:PORT:DB add a second record"
_REFUSED = {
    ("-q", "--queue"): "nothing starts queued runs; leave it out",
    ("-s", "--sql"): f"there is no record in SQL; {_ELSEWHERE}",
    ("-t", "--tiny_db"): f"there is no record in TinyDB; {_ELSEWHERE}",
    (
        "-S",
        "--s3",
    ): f"there is no record in S3; {_ELSEWHERE}; checkpoints_dir=s3://… keeps checkpoints and events there",
    ("-i", "--id"): "a run is numbered by its record, runs/N; name it with job_name=… instead",
}


def separate(words: Sequence[str], keys: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The flags with their values, and the other words in their order. Raises `UserError` at a flag that doesn't exist."""
    try:
        return getopt.gnu_getopt(list(words), _SHORT, _LONG)
    except getopt.GetoptError as error:
        flag = ("--" if len(error.opt) > 1 else "-") + error.opt
        if "not recognized" not in error.msg:
            raise UserError(f"{flag}: {error.msg}; `--help` shows the flags") from error
        key = meant(error.opt, keys) if len(error.opt) > 1 else None
        remedy = f"write the key after `with`: with {key}=…" if key else "`--help` shows the flags"
        raise UserError(f"{flag}: there is no such flag; {remedy}") from error


def takes_value(word: str) -> bool:
    """Whether `word` is a flag whose value is the next word."""
    return (
        f"{word[2:]}=" in _LONG if word[:2] == "--" else len(word) == 2 and f"{word[1:]}:" in _SHORT and word[0] == "-"
    )


def check(flags: Sequence[tuple[str, str]]) -> None:
    """Raise `UserError` at a flag that this program doesn't support, or whose value Sacred would stumble over."""
    for flag, value in flags:
        for names, reason in _REFUSED.items():
            if flag in names:
                raise UserError(f"{f'{flag} {value}'.strip()}: {reason}")
        expected = ""
        match flag:
            case "-b" | "--beat-interval":
                expected = "" if 0 < _number(value) <= 1e6 else "seconds, a number above 0"
            case "-P" | "--priority":
                expected = "" if abs(_number(value)) < float("inf") else "a number"
            case "-l" | "--loglevel":
                levels = logging.getLevelNamesMapping()
                expected = "" if value in levels or value.isdecimal() else f"a number or one of {', '.join(levels)}"
            case "-C" | "--capture":  # capturing file descriptors ("fd") deadlocks with child processes
                expected = "" if value in ("no", "sys") else "no or sys"
        if expected:
            raise UserError(f"{flag} {value}: expected {expected}; correct it, or leave it out")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
