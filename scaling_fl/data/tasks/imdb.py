"""IMDB reviews (Maas et al. 2011), negative and positive: 25,000 for training, 25,000 for testing.

Reads the original archive, downloaded once per machine, or an archive or unpacked folder named by `train_path`. Skips
the unlabelled reviews. Never unpacks to disk, so that no path in an archive can write anywhere.
"""

import re
import tarfile
from collections.abc import Iterator

import fsspec
import numpy as np

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Split, Task
from scaling_fl.data.readers import downloads
from scaling_fl.data.readers.paths import file_system
from scaling_fl.errors import UserError
from scaling_fl.progress import Report
from scaling_fl.text import NOT_TEXT, is_text

NEEDS = ()
TAKES = ("train_path", "keep_br_tags")
URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
MD5 = "7c2ac02c03563afcf9b574c7e56c153a"
LABEL_NAMES = ("negative", "positive")
FOLDERS = ("neg", "pos")
PER_LABEL = 12_500  # reviews of each label in each split
BREAK = "<br />"

_REVIEW = re.compile(r"(?:.*/)?(train|test)/(neg|pos)/(\d+)_\d+\.txt")
_CHUNK = 500  # files requested at once


def load(config: Config, report: Report) -> Task:
    if config.train_path is not None:
        place, what = config.train_path, f"train_path={config.train_path!r}"
    else:
        remedy = "name a copy of the archive: train_path=…/aclImdb_v1.tar.gz"
        place = str(downloads.cached(URL, MD5, remedy, report))
        what = f"{place} (delete it to download it again)"
    reviews: dict[tuple[str, str], dict[int, str]] = {(s, f): {} for s in ("train", "test") for f in FOLDERS}
    try:
        fs, root = file_system(place)
        if not fs.exists(root):
            raise FileNotFoundError
        for done, (name, content) in enumerate(_archive(fs, root) if fs.isfile(root) else _folder(fs, root)):
            found = _REVIEW.fullmatch(name)
            assert found is not None
            text = content.decode(errors="surrogateescape")
            if not is_text(text):
                raise UserError(f"{what}, file {name}: {NOT_TEXT}")
            reviews[found[1], found[2]][int(found[3])] = text
            if done % _CHUNK == 0:
                report("reading reviews", done, 4 * PER_LABEL, "reviews")
        report("reading reviews", 4 * PER_LABEL, 4 * PER_LABEL, "reviews")
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"{what}: there is no such archive or folder, or it can't be reached; check the path"
        ) from error
    except Exception as error:  # every file system and kind of damage raises its own exceptions
        raise UserError(f"{what}: cannot read it: {type(error).__name__}: {error}; is it complete?") from error
    for (split, folder), texts in reviews.items():
        if len(texts) != PER_LABEL:
            raise UserError(
                f"{what}: expected {PER_LABEL:,} reviews in {split}/{folder}, found {len(texts):,}; "
                "use a complete copy of aclImdb_v1"
            )
    train, test = (_split(reviews, split, config.keep_br_tags) for split in ("train", "test"))
    return Task(train, test, LABEL_NAMES)


def _split(reviews: dict[tuple[str, str], dict[int, str]], split: str, keep_br_tags: bool) -> Split:
    """One split, ordered by label and number: the order doesn't depend on where the reviews were read from."""
    texts = [text for folder in FOLDERS for _, text in sorted(reviews[split, folder].items())]
    notes = []
    if not keep_br_tags:
        tagged = sum(BREAK in text for text in texts)
        texts = [text.replace(BREAK, " ") for text in texts]
        notes = [
            f"{BREAK} became a space in {tagged:,} {'training' if split == 'train' else split} reviews (keep_br_tags=True keeps it)"
        ]
    return Split(texts, np.repeat(np.arange(2), PER_LABEL), notes=tuple(notes))


def _archive(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[str, bytes]]:
    with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if member.isfile() and _REVIEW.fullmatch(member.name):
                content = archive.extractfile(member)
                assert content is not None
                yield member.name, content.read()


def _folder(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[str, bytes]]:
    names = [name for name in fs.find(path) if _REVIEW.fullmatch(name)]
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        # `cat` would take [ and * in a folder's name for a pattern.
        yield from zip(chunk, fs.cat_ranges(chunk, None, None, on_error="raise"), strict=True)
