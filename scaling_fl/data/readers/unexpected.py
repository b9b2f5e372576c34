"""Files that are not what their names say: another format, or a CSV file with another separator."""

from scaling_fl.errors import UserError

_SEPARATORS = {  # each with its name and the remedy if a file has it unexpectedly
    ";": ("semicolons", "save it with commas"),
    "\t": ("tabs", "name it .tsv"),
    "|": ("vertical bars", "save it with commas"),
    ",": ("commas", "name it .csv"),
}
_AS_CSV = "save the sheet as CSV in UTF-8"
_OTHER_FORMATS = (  # how a file of another format begins; bytes that are not UTF-8 are surrogates
    ("PK\3\4", "an Excel workbook or a zip archive", f"{_AS_CSV}, or unpack the archive"),
    ("\udcd0\udccf\x11", "an Excel workbook", _AS_CSV),
    ("PAR1", "Parquet", "name it .parquet"),
    ("\x1f\udc8b", "gzip", "add .gz to its name"),
    ("\udcfd7zXZ", "xz", "add .xz to its name"),
    ("\udcff\udcfe", "UTF-16", "save the file as UTF-8"),
    ("\udcfe\udcff", "UTF-16", "save the file as UTF-8"),
    ("%PDF-", "a PDF document", "name a file of rows"),
    ("<!doctype", "a web page", "download the file itself"),
    ("<html", "a web page", "download the file itself"),
    ("version https://git-lfs", "a Git LFS pointer", "fetch the file with git lfs pull"),
)


def check_start(first: str, path: str) -> None:
    """Raise `UserError` if the first line shows that the file has another format than its name says."""
    for start, found, remedy in _OTHER_FORMATS:
        if first[: len(start)].lower() == start.lower():
            raise UserError(f"{path}, row 1: expected text, found {found}; {remedy}")


def check_separator(path: str, separator: str, record: list[str], wanted: list[str], num_fields: int) -> None:
    """Raise `UserError` if the first record has the wanted columns, or `num_fields` fields, with another separator."""
    if num_fields == len(record) or set(wanted) <= set(record):
        return
    line = separator.join(record)
    for other, (name, remedy) in _SEPARATORS.items():
        fields = [field.strip().strip('"') for field in line.split(other)]
        if other != separator and (set(wanted) <= set(fields) or len(fields) == num_fields > 1):
            raise UserError(
                f"{path}, row 1: its fields seem to be separated by {name}, not by {_SEPARATORS[separator][0]}; {remedy}"
            )
