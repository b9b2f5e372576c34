"""Paths, lists of them and patterns, on a disk, in memory and in object stores."""

import http.server
import json
import threading
from pathlib import Path

import pytest

from scaling_fl.data.readers import paths, tables
from scaling_fl.errors import UserError
from tests.conftest import ObjectStore
from tests.data.readers.files import WANTED, columns, write


def test_several_files_and_patterns_are_read_in_order(tmp_path: Path) -> None:
    for name, text in (("part-10", "c"), ("part-02", "b"), ("other", "a")):
        write(tmp_path / f"{name}.jsonl", json.dumps({"text": text, "label": "x"}).encode())
    write(tmp_path / "more.csv", b"label,more,text\ny,,d\n\ny,,e\n")
    paths = f"{tmp_path}/other.jsonl, {tmp_path}/part-*.jsonl,{tmp_path}/more.csv"
    table = tables.read(paths, "train_path", WANTED)
    assert table.columns == {"text": list("abcde"), "label": ["x", "x", "x", "y", "y"]}
    assert table.location(4, "text") == f"{tmp_path}/more.csv, row 4, column text"
    assert table.notes == (f"{tmp_path}/more.csv: 1 blank line skipped",)


def test_a_file_may_have_a_comma_or_a_star_in_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a,b*[1].csv", b"text,label\na,x\n")
    assert paths.expand(path, "train_path") == [path]
    assert columns(path) == {"text": ["a"], "label": ["x"]}


def test_of_the_names_in_a_list_the_longest_that_exists_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a,b", "b,c", "c"):
        (tmp_path / name).touch()
    assert paths.expand("a,b,c", "train_path") == ["a,b", "c"]
    assert paths.expand("c,b,c", "train_path") == ["c", "b,c"]
    assert paths.expand("b, a", "train_path") == ["b", "a"]


def test_a_file_named_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.csv", b"text,label\na,x\n")
    (tmp_path / "a.csv.d").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.csv").symlink_to(tmp_path / "a.csv")
    monkeypatch.chdir(tmp_path)
    for names in ("a.csv,./a.csv", f"{tmp_path}/a.*,a.csv"):
        with pytest.raises(UserError, match=r"train_path='.*': it names (\./)?a\.csv twice"):
            tables.read(names, "train_path", WANTED)
    with pytest.raises(UserError, match=r"it names links/b\.csv twice"):
        tables.read("a.csv,links/b.csv", "train_path", WANTED)
    assert paths.expand(f"{tmp_path}/a*", "train_path") == [f"{tmp_path}/a.csv"], "folders are ignored"


def test_the_format_of_a_url_is_determined_by_its_path() -> None:
    with pytest.raises(UserError, match=r"there is no such file, or it can't be reached"):
        columns("http://127.0.0.1:9/x.jsonl?download=true")
    lines = b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(lines)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(lines)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = columns(f"http://127.0.0.1:{server.server_port}/x.jsonl?download=true")
        server.shutdown()
    assert found == {"text": ["a", "b"], "label": ["x", "y"]}


def test_patterns_work_on_the_memory_file_system() -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe({"/formats/b.csv": b"text,label\nb,x\n", "/formats/a.csv": b"text,label\na,x\n"})
    assert columns("memory://formats/*.csv") == {"text": ["a", "b"], "label": ["x", "x"]}


def test_files_that_cannot_be_opened_are_refused_with_key_and_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test_path='/no/such\.csv': there is no such file"):
        tables.read("/no/such.csv", "test_path", WANTED)
    with pytest.raises(UserError, match=rf"test_path='{tmp_path}': it is a folder; name the files in it"):
        tables.read(str(tmp_path), "test_path", WANTED)
    with pytest.raises(UserError, match="test_path='nope://x': cannot read it"):
        tables.read("nope://x", "test_path", WANTED)
    with pytest.raises(UserError, match="test_path=',': it names no file"):
        tables.read(",", "test_path", WANTED)
    with pytest.raises(UserError, match=r"test_path='nope://\*': cannot list it"):
        tables.read("nope://*", "test_path", WANTED)
    with pytest.raises(UserError, match=rf"test_path='{tmp_path}/\*\.csv': no file matches this pattern"):
        tables.read(f"{tmp_path}/*.csv", "test_path", WANTED)


def test_patterns_work_on_object_stores(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    bucket = object_store.bucket
    object_store.fs.pipe({f"{bucket}/{n}.csv": f"text,label\n{n},x\n".encode() for n in ("part-2", "part-1", "other")})
    assert columns(f"{bucket}/part-*.csv") == {"text": ["part-1", "part-2"], "label": ["x", "x"]}
    assert columns(f"{bucket}/part-2.csv,{bucket}/other.csv")["text"] == ["part-2", "other"]
    object_store.fs.pipe(f"{bucket}/bad.csv", b"a,b\n")
    with pytest.raises(UserError, match=rf"text_column='text': {bucket}/bad\.csv has no column text"):
        columns(f"{bucket}/b*.csv")
    with pytest.raises(UserError, match=rf"train_path='{bucket}/none-\*\.csv': no file matches this pattern"):
        columns(f"{bucket}/none-*.csv")
    with pytest.raises(UserError, match=rf"train_path='{bucket}/none\.csv': there is no such file"):
        columns(f"{bucket}/none.csv")


def test_a_tilde_is_the_home_folder_in_names_lists_and_patterns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x[2]").mkdir()
    for name in ("a.csv", "a,b.csv", "[1].csv", "x[2]/c.csv"):
        write(tmp_path / name, f"text,label\n{name.replace(',', ' ')},x\n".encode())
    assert paths.expand("~/a.csv, ~/a,b.csv,~/[1].csv", "train_path") == ["~/a.csv", "~/a,b.csv", "~/[1].csv"]
    assert columns("~/a,b.csv,~/[1].csv,~/x[2]/*.csv")["text"] == ["a b.csv", "[1].csv", "x[2]/c.csv"]
    with pytest.raises(UserError, match=r"it names .*/a\.csv twice"):
        paths.expand(f"~/a.csv,{tmp_path}/a.csv", "train_path")
    with pytest.raises(UserError, match=r"train_path='~/x\[2\]': it is a folder; name the files in it"):
        columns("~/x[2]")
