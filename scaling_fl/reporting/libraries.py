"""The JavaScript that draws charts in a page: Vega, from the package vl-convert."""

import contextlib
from importlib.metadata import version

import vl_convert
import xxhash

from scaling_fl import host
from scaling_fl.checkpoint.storage import Storage
from scaling_fl.errors import UserError

_PREFIX = f"vega-{version('vl-convert-python')}-"


def javascript() -> str:
    """The source text. Bundling it takes a second, so the user's cache keeps it, under its checksum."""
    with contextlib.suppress(OSError, UserError):
        for path in host.cache_folder().glob(f"{_PREFIX}*.js"):
            kept = path.read_bytes()
            if path.stem == _PREFIX + xxhash.xxh3_64_hexdigest(kept):
                return kept.decode()
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg] # its stub lacks the default
    with contextlib.suppress(OSError, UserError):
        content, folder = bundle.encode(), host.cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        Storage(str(folder), "XDG_CACHE_HOME").write(f"{_PREFIX}{xxhash.xxh3_64_hexdigest(content)}.js", content)
    return bundle
