"""Archives with the layout and the number of reviews of the original: intact, damaged, hostile and unpacked."""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import fsspec.implementations.memory
import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Task
from scaling_fl.data.task_loader import load_task
from scaling_fl.data.tasks import imdb
from scaling_fl.errors import UserError
from tests.conftest import ObjectStore
from tests.data.conftest import Server

ROOT = "aclImdb"


def pack(path: Path, change: Callable[[str], str | None] = lambda name: name, content: bytes | None = None) -> str:
    """Write `imdb.PER_LABEL` reviews into each of four folders, among the original's other files.

    `change` renames members, or leaves a member out if it returns None.
    """

    def add(name: str, data: bytes) -> None:
        changed = change(name)
        if changed is not None:
            member = tarfile.TarInfo(changed)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        add(f"{ROOT}/README", b"about")
        for split in ("test", "train"):
            add(f"{ROOT}/{split}/urls_pos.txt", b"http://")
            for label, rating in (("neg", 2), ("pos", 9)):
                for number in reversed(range(imdb.PER_LABEL)):
                    text = f"{split} {label} {number}<br /><br />caf\u00e9\x85second line"
                    add(f"{ROOT}/{split}/{label}/{number}_{rating}.txt", content or text.encode())
        for number in range(3):
            add(f"{ROOT}/train/unsup/{number}_0.txt", b"unlabelled")
        add(f"{ROOT}/train/pos/._0_9.txt", b"\x00\xff of another system")
    return str(path)


@pytest.fixture(scope="module")
def pack_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Returns the path of an archive with `imdb.PER_LABEL` reviews per folder. Each size is packed once."""
    folder = tmp_path_factory.mktemp("imdb")

    def pack_if_missing() -> str:
        path = folder / str(imdb.PER_LABEL) / "aclImdb_v1.tar.gz"
        if not path.exists():
            path.parent.mkdir()
            pack(path)
        return str(path)

    return pack_if_missing


@pytest.fixture
def archive(pack_once: Callable[[], str]) -> str:
    return pack_once()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expect a twenty-fifth of the reviews, for tests that don't depend on their number."""
    monkeypatch.setattr(imdb, "PER_LABEL", 500)


def load(path: str, **keys: object) -> Task:
    return load_task(Config(task_name="imdb", train_path=path, **keys))  # type: ignore[arg-type]


def test_the_archive_yields_every_labelled_review(archive: str) -> None:
    task = load(archive)
    assert task.label_names == ("negative", "positive")
    assert len(task.train) == len(task.test) == 25_000
    assert task.train.labels.tolist() == task.test.labels.tolist() == [0] * 12_500 + [1] * 12_500
    assert task.train.texts[7] == "train neg 7  café\x85second line"
    assert task.test.texts[12_500 + 11_000] == "test pos 11000  café\x85second line"
    assert "<br /> became a space in 25,000 test reviews (keep_br_tags=True keeps it)" in task.notes


@pytest.mark.usefixtures("small")
def test_br_tags_are_kept_on_request(archive: str) -> None:
    task = load(archive, keep_br_tags=True, max_train_examples=10, max_test_examples=4)
    assert (len(task.train), len(task.test), task.notes) == (10, 4, ())
    assert task.train.labels.tolist() == [0] * 5 + [1] * 5
    assert all("<br /><br />" in text for text in task.train.texts)


@pytest.mark.usefixtures("small")
def test_the_unpacked_folder_or_its_parent_equals_the_archive(archive: str, tmp_path: Path) -> None:
    shutil.unpack_archive(archive, tmp_path)
    digest = load(archive).digest()
    assert load(str(tmp_path)).digest() == digest
    assert load(str(tmp_path / ROOT)).digest() == digest
    for name in ("copy [1]", "a*b?", "*"):
        (tmp_path / name).symlink_to(tmp_path / ROOT)
        assert load(str(tmp_path / name)).digest() == digest
        (tmp_path / name).unlink()
    for number in (3, 14):
        (tmp_path / ROOT / f"test/neg/{number}_2.txt").write_text("a single line")
    assert [note.partition(" reviews")[0] for note in load(str(tmp_path)).notes] == [
        "<br /> became a space in 1,000 training", "<br /> became a space in 998 test",
    ]  # fmt: skip
    (tmp_path / ROOT / "test/pos/17_9.txt").unlink()
    with pytest.raises(
        UserError, match=r"expected 500 reviews in test/pos, found 499; use a complete copy of aclImdb_v1"
    ):
        load(str(tmp_path))
    (tmp_path / ROOT / "test/pos/17_9.txt").write_bytes(b"caf\xe9")
    with pytest.raises(
        UserError, match=r"file .*test/pos/17_9\.txt: expected text, found a NUL or bytes that are not UTF-8"
    ):
        load(str(tmp_path))


@pytest.mark.usefixtures("small")
def test_a_hostile_archive_writes_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = pack(inside / "evil.tar.gz", lambda name: f"../../{name}")
    with tarfile.open(inside / "links.tar.gz", "w:gz") as links:
        link = tarfile.TarInfo("aclImdb/train/neg/0_2.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        links.addfile(link)
    assert len(load(path).train) == 1_000, "member names identify reviews, but are never used as paths"
    with pytest.raises(UserError, match="expected 500 reviews in train/neg, found 0"):
        load(str(inside / "links.tar.gz"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["evil.tar.gz", "inside", "links.tar.gz"]


def test_damaged_missing_and_wrong_archives_are_refused(archive: str, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(Path(archive).read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cut\.tar\.gz': (cannot read it: (EOF|Read)Error|expected 12,500)"):
        load(str(cut))
    (tmp_path / "page.html").write_text("<html>not found</html>" * 1000)
    with pytest.raises(UserError, match=r"page\.html': cannot read it: ReadError"):
        load(str(tmp_path / "page.html"))
    with pytest.raises(UserError, match=r"train_path='/no/such': there is no such archive or folder"):
        load("/no/such")
    with pytest.raises(UserError, match=r"expected 12,500 reviews in train/neg, found 0"):
        load(str(tmp_path))
    with pytest.raises(UserError, match=r"test_path='x': task_name=imdb doesn't use it; it takes train_path"):
        load(archive, test_path="x")


@pytest.mark.usefixtures("small")
def test_the_archive_may_be_in_an_object_store(
    archive: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    digest = load(archive).digest()
    object_store.fs.put_file(archive, f"{object_store.bucket}/imdb.tar.gz")
    assert load(f"{object_store.bucket}/imdb.tar.gz").digest() == digest


@pytest.mark.usefixtures("small")
def test_a_remote_folder_is_read_in_chunks(archive: str) -> None:
    memory = fsspec.filesystem("memory")
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            memory.store[f"/imdb/{member.name}"] = fsspec.implementations.memory.MemoryFile(
                memory, f"/imdb/{member.name}", content.read()
            )
    try:
        assert load("memory://imdb").digest() == load(archive).digest()
    finally:
        memory.store.clear()


@pytest.mark.usefixtures("small")
def test_without_a_path_the_archive_is_downloaded_and_a_broken_transfer_resumes(
    archive: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path(archive).read_bytes()
    server.content, server.cuts = content, [len(content) // 2]
    monkeypatch.setattr(imdb, "URL", server.url)
    monkeypatch.setattr(imdb, "MD5", hashlib.md5(content).hexdigest())
    seen: list[tuple[object, ...]] = []
    task = load_task(Config(task_name="imdb"), lambda *progress: seen.append(progress))
    assert task.digest() == load(archive).digest()
    assert [start > 0 for start in server.requests] == [False, True]
    assert {what for what, *_ in seen} == {"downloading file.bin", "reading reviews"}
    assert seen[-1] == ("reading reviews", 2_000, 2_000, "reviews")
    cached = Path(os.environ["XDG_CACHE_HOME"]) / "scaling_fl" / "file.bin"
    cached.write_bytes(content[:-5000])
    with pytest.raises(UserError, match=r"file\.bin \(delete it to download it again\): cannot read it"):
        load_task(Config(task_name="imdb"))
