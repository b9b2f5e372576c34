"""CSV text parsed in blocks, several times faster than `csv.reader`; whatever is not plainly written is left to it.

Between the quotes of well-formed CSV, fields and the text outside them alternate. So one split at the quotes, and one of
the text outside at commas and line breaks, yield the fields of many records, without a look at single characters.
"""

import itertools


def take(text: str, num_fields: int, last: bool) -> tuple[list[list[str]], str] | None:
    """The whole records at the beginning of `text`, as `num_fields` columns of fields, and the text after them.

    `text` begins with a record; `last`: it ends with one. None if `csv.reader(strict=True)` might read the text otherwise,
    refuse it, or find a blank line or a record with another number of fields.
    """
    if last and text and text[-1] not in "\n\r":
        text += "\n"
    pieces = text.split('"')  # even: outside of quotes; odd: inside
    end = len(pieces) - 1
    if last:
        if end % 2:
            return None
        rest = ""
    else:
        end -= end % 2
        while end >= 0 and "\n" not in pieces[end]:
            end -= 2
        if end < 0:
            return [[] for _ in range(num_fields)], text
        before, line_break, after = pieces[end].rpartition("\n")
        rest = '"'.join([after, *pieces[end + 1 :]])
        pieces[end:] = [before + line_break]
    outside, inside = pieces[::2], pieces[1::2]
    if "" in outside[1:-1]:
        outside, inside = _with_quotes(outside, inside)
    # A quoted field is a lone quote here: the text outside has no others.
    marked = '"'.join(outside)
    if "\r" in marked:
        marked = marked.replace("\r\n", "\n")
    all_quoted = ",".join('"' * num_fields) + "\n"
    if marked == all_quoted * (len(inside) // num_fields):
        return [inside[position::num_fields] for position in range(num_fields)], rest
    lines = marked.split("\n")
    lines.pop()
    fields = marked.replace("\n", ",").split(",")
    fields.pop()
    if (
        "\r" in marked
        or any(line.count(",") != num_fields - 1 for line in lines)
        or (num_fields == 1 and "" in lines)
        or fields.count('"') != len(inside)
    ):
        return None
    if inside:
        quoted = iter(inside)
        fields = [next(quoted) if field == '"' else field for field in fields]
    return [fields[position::num_fields] for position in range(num_fields)], rest


def _with_quotes(outside: list[str], inside: list[str]) -> tuple[list[str], list[str]]:
    """Doubled quotes are quotes in a field: nothing is between the two."""
    ends = [index + 1 for index, between in enumerate(outside[1:-1]) if between] + [len(inside)]
    fields = ['"'.join(inside[start:end]) for start, end in itertools.pairwise([0, *ends])]
    return [outside[0], *filter(None, outside[1:-1]), outside[-1]], fields


def num_lines(text: str) -> int:
    """The line breaks in `text`, as text files count them."""
    return text.count("\n") + (text.count("\r") - text.count("\r\n") if "\r" in text else 0)
