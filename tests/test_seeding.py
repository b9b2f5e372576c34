import numpy as np

from scaling_fl import seeding


def test_a_stream_is_a_function_of_seed_purpose_and_path() -> None:
    def first(*arguments: object) -> float:
        return float(seeding.generator(*arguments).random())  # type: ignore[arg-type]

    assert first(1, "order", 2, 3) == first(1, "order", 2, 3)
    others = [
        first(0, "order", 2, 3),
        first(1, "dropout", 2, 3),
        first(1, "order", 3, 2),
        first(1, "order", 2),
        first(1, "order", 2, 3, 0),
    ]
    assert len({first(1, "order", 2, 3), *others}) == 6
    # `SeedSequence` itself fills up to four entries with zeros.
    assert len({first(1, "order"), first(1, "order", 0), first(1, "order", 0, 0), first(1, "order", 0, 0, 0)}) == 4


def test_torch_seeds_are_63_bits_wide() -> None:
    drawn = [seeding.torch_seed(1, "dropout", number) for number in range(200)]
    assert len(set(drawn)) == 200
    assert min(drawn) >= 0
    assert 2**62 < max(drawn) < 2**63
    assert isinstance(seeding.generator(1, "x"), np.random.Generator)
