import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling_fl import state_file
from scaling_fl.state_file import Damaged, read_state, write_state

TENSORS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7), "b": np.array([0.1], np.float32)}
HEADER = {"round": 3, "config": {"learning_rate": 5e-5, "site_ids": [0, 1]}, "metrics": {"loss": 0.1 + 0.2}}


def test_a_state_round_trips_bitwise_with_its_header(tmp_path: Path) -> None:
    write_state(tmp_path / "state", TENSORS, HEADER)
    tensors, header = read_state(tmp_path / "state")
    assert header == HEADER | {"format_version": 2}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert np.array_equal(tensors[name], tensor)


def test_a_state_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    write_state(tmp_path / "state", TENSORS, HEADER)
    (tmp_path / "other").write_text("")
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_state_file_is_plain_safetensors(tmp_path: Path) -> None:
    write_state(tmp_path / "state", TENSORS, HEADER)
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "state")["w"], TENSORS["w"])


def test_who_reads_a_state_keeps_it_while_another_takes_its_name(tmp_path: Path) -> None:
    write_state(tmp_path / "state", TENSORS, HEADER)
    tensors, _ = read_state(tmp_path / "state")
    write_state(tmp_path / "state", {name: array + 1 for name, array in TENSORS.items()}, HEADER)
    assert np.array_equal(tensors["w"], TENSORS["w"])
    assert np.array_equal(read_state(tmp_path / "state")[0]["w"], TENSORS["w"] + 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_any_flipped_bit_and_any_truncation_is_detected(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "state"
    write_state(path, TENSORS, HEADER)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        tensors, header = read_state(path)
    except Damaged:
        return
    # Safetensors pads its JSON with spaces, and white space in JSON is insignificant.
    assert header == HEADER | {"format_version": 2}
    assert all(np.array_equal(tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    ("written", "changed"),
    [(b'"shape": [2, 3]', b'"shape": [3, 2]'), (b'"dtype": "F32", "shape": [2', b'"dtype": "I32", "shape": [2')],
)
def test_the_same_bytes_in_another_shape_or_of_another_type_are_damage(
    tmp_path: Path, written: bytes, changed: bytes
) -> None:
    path = tmp_path / "state"
    write_state(path, TENSORS, HEADER)
    assert path.read_bytes().count(written) == 1
    path.write_bytes(path.read_bytes().replace(written, changed))
    assert safetensors.numpy.load_file(path)["w"].tobytes() == TENSORS["w"].tobytes()
    with pytest.raises(Damaged, match="its checksum doesn't match its content"):
        read_state(path)


def test_unknown_versions_and_foreign_files_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    for version in (0, 3):
        monkeypatch.setattr(state_file, "FORMAT_VERSION", version)
        write_state(tmp_path / "other", TENSORS, HEADER)
        monkeypatch.undo()
        with pytest.raises(Damaged, match=f"format version {version}; this program reads versions 1 and 2"):
            read_state(tmp_path / "other")
    safetensors.numpy.save_file(TENSORS, tmp_path / "foreign")
    with pytest.raises(Damaged):
        read_state(tmp_path / "foreign")
    (tmp_path / "pickle").write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(Damaged):
        read_state(tmp_path / "pickle")
    header = json.dumps({"__metadata__": {"scaling_fl": "[1]"}}).encode()
    (tmp_path / "list").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(Damaged):
        read_state(tmp_path / "list")


def test_each_tensor_begins_at_a_multiple_of_its_width(tmp_path: Path) -> None:
    """So that it can be used where it is mapped into memory."""
    tensors = TENSORS | {"a": np.array([True, False, True])}
    write_state(tmp_path / "state", tensors, HEADER)
    content = (tmp_path / "state").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + size])
    for name, array in tensors.items():
        start, stop = head[name]["data_offsets"]
        assert (8 + size + start) % array.itemsize == 0, name
        assert content[8 + size + start : 8 + size + stop] == array.tobytes()
