"""README.md has the speeds of the table in benchmarks/README.md."""

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def _ratios(script: str, claim: str) -> list[float]:
    """Those of all rows of the table with this claim."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "benchmarks" / "README.md").read_text().splitlines()
    ]
    return [float(cells[4]) for cells in rows if cells[:2] == [f"`{script}`", claim]]


def _span(ratios: list[float], digits: int) -> str:
    return f"{min(ratios):.{digits}f} to {max(ratios):.{digits}f}"


def test_local_training() -> None:
    (default,) = _ratios("local_training", "local training against the Trainer's default")
    (products,) = _ratios("local_training", "… against this machine's matrix products")
    assert (
        f"{default:.1f} × as fast as the Hugging Face Trainer's default, at {products:.0%}".replace("%", " %") in README
    )


def test_rounds() -> None:
    claim = "a round, against pfl-research, "  # in the faster of two ways
    (pfl,) = _ratios("round_overhead", f"{claim}one process") + _ratios("round_overhead", f"{claim}a process per core")
    (flower,) = _ratios("round_overhead", "… against Flower")
    assert f"with little training takes {1 / pfl:.2f} of pfl-research's time and {1 / flower:.2f} of Flower's" in README
    (hosted,) = _ratios("hosting", "a round of 100 out of 10,000 sites, against 100 out of 100: time")
    assert f"100 out of 10,000 sites takes {hosted:.2f} × the time of 100 out of 100" in README


def test_aggregation() -> None:
    spans = [
        _span(_ratios("aggregation", f"… {sums} against gloo, flat all-reduce"), 1)
        for sums in ("fixed point", "floats")
    ]
    assert (
        f"{spans[0]} × as fast as gloo's flat all-reduce with `exact_sum` (the default), {spans[1]} × without" in README
    )


def test_adapters() -> None:
    bare = _ratios("lora", "… against bare peft steps, a process per core")
    flower = [
        1 / ratio
        for tokens in (32, 128)
        for ratio in _ratios("lora", f"a round of 8 sites, one LoRA step of {tokens} tokens each, against FlowerTune")
    ]
    expected = f"takes {_span(bare, 2)} of bare peft steps' time, and {_span(flower, 2)} of that of Flower"
    assert expected in README
