"""The charts' JavaScript is bundled once per user, and never taken from a damaged file."""

from pathlib import Path
from unittest import mock

import pytest

from scaling_fl.reporting import libraries


def test_it_is_bundled_once_and_again_if_the_kept_file_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = mock.Mock(side_effect=["export {vega: 'ä\r\n'}", "again"])
    monkeypatch.setattr("vl_convert.javascript_bundle", bundle)
    assert [libraries.javascript() for _ in range(3)] == ["export {vega: 'ä\r\n'}"] * 3
    assert bundle.call_count == 1
    (kept,) = tmp_path.rglob("*.js")
    kept.write_bytes(b"")
    assert [libraries.javascript() for _ in range(2)] == ["again"] * 2
    assert [path.suffix for path in (tmp_path / "scaling_fl").iterdir()] == [".js", ".js"], "nothing else is left"


@pytest.mark.parametrize("home", ["/proc/none", "file"])
def test_without_a_cache_it_is_bundled_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    bundle = mock.Mock(return_value="vega")
    monkeypatch.setattr("vl_convert.javascript_bundle", bundle)
    assert [libraries.javascript() for _ in range(2)] == ["vega"] * 2
    assert bundle.call_count == 2


def test_the_bundle_draws_charts() -> None:
    assert "vegaEmbed" in libraries.javascript()
