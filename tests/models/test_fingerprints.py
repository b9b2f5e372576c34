from pathlib import Path

import numpy as np
import pytest

from scaling_fl.data import token_cache, token_store
from scaling_fl.models import fingerprints, loading
from tests import builders

LABELS = ("a", "b", "c")


def weights(model: str, seed: int) -> str:
    loaded = loading.load_model(model, LABELS, ["river stone"], 16, seed)
    initial = {name: tensor.detach().numpy() for name, tensor in loaded.module.named_parameters()}
    return fingerprints.pretrained(loaded, initial | {"server.moment.0": np.zeros(seed)})


def test_model_digest_excludes_newly_initialised_parameters(tmp_path: Path) -> None:
    """A job may resume on another processor, which may initialise them differently."""
    model = str(builders.pretrained(tmp_path / "model"))
    assert weights(model, seed=1) == weights(model, seed=2)
    assert weights("tiny", seed=1) == weights("tiny", seed=2) != weights(model, seed=1)


def test_token_digest_is_the_same_with_and_without_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unwritable cache, or another order of its files, doesn't make it another job."""
    names = ("cached", "plain", "other", "other test")

    def write(folder: Path, shift: int = 0) -> None:
        texts, labels = builders.texts_and_labels(9, seed=shift)
        token_store.write(folder, builders.tokenizer(), texts, labels, 16)

    for name in names:
        (tmp_path / name).mkdir()
        write(tmp_path / name / "test", shift=name == "other test")
    assert token_cache.link(tmp_path / "cached" / "train", "a key", write, lambda *_: None) == []
    assert (tmp_path / "cached" / "train").is_symlink()
    write(tmp_path / "plain" / "train")
    write(tmp_path / "other" / "train", shift=1)
    write(tmp_path / "other test" / "train")
    cached, plain, *others = (fingerprints.tokens(tmp_path / name) for name in names)
    assert cached == plain
    assert len({plain, *others}) == 3, "another training set, another test set"
    listed = Path.iterdir
    for backwards in (True, False):
        monkeypatch.setattr(
            Path, "iterdir", lambda folder, backwards=backwards: iter(sorted(listed(folder), reverse=backwards))
        )
        assert fingerprints.tokens(tmp_path / "plain") == plain


@pytest.mark.parametrize(
    ("changed", "differs"),
    [("shards.npy", "shards"), ("bounds.npy", "shards"), ("held_back.npy", "shards"), ("weight", "models")],
)
def test_nodes_differ_in_whatever_a_worker_reads(tmp_path: Path, changed: str, differs: str) -> None:
    def digests(folder: Path, change: str) -> dict[str, str]:
        folder.mkdir()
        for name in ("shards.npy", "bounds.npy", "held_back.npy"):
            np.save(folder / name, np.arange(5) + (name == change))
        names = ("weight", "bias") if change else ("bias", "weight")  # their order says nothing
        initial = {name: np.full(3, len(name)) + (name == change) for name in names}
        return fingerprints.node_digests(folder, "data", "tokens", initial)

    first, second = digests(tmp_path / "first", ""), digests(tmp_path / "second", changed)
    assert {name for name in first if first[name] != second[name]} == {differs}
