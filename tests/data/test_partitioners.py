import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_fl import seeding
from scaling_fl.config.partition_keys import SIZE_LAWS
from scaling_fl.data import partitioners
from scaling_fl.errors import UserError

Scheme = Callable[[np.ndarray, int, int], np.ndarray]

# Labels, number of sites, seed → owners; with typical parameters, and with some at the limits of their range.
EVEN: dict[str, Scheme] = {
    "iid": partitioners.iid,
    "by_label": lambda labels, num_sites, seed: partitioners.by_label(labels, num_sites),
    **{
        f"balanced {alpha:g}": lambda labels, num_sites, seed, alpha=alpha: partitioners.dirichlet_balanced(
            labels, num_sites, seed, alpha
        )
        for alpha in (1e-9, 0.3, 1e9)
    },
}
UNEVEN: dict[str, Scheme] = {
    **{
        f"dirichlet {alpha:g}": lambda labels, num_sites, seed, alpha=alpha: partitioners.dirichlet(
            labels, num_sites, seed, alpha
        )
        for alpha in (1e-9, 0.3, 1e9)
    },
    **{
        f"{law} {skew:g}": lambda labels, num_sites, seed, law=law, skew=skew: partitioners.sizes(
            labels, num_sites, seed, law, skew
        )
        for law in SIZE_LAWS
        for skew in (0.5, 1e300)
    },
    "labels_per_site": lambda labels, num_sites, seed: partitioners.labels_per_site(labels, num_sites, seed, 1),
}
SCHEMES = EVEN | UNEVEN
SEEDED = sorted(SCHEMES.keys() - {"by_label"})

labels_and_sites = st.lists(st.integers(0, 4), min_size=1, max_size=80).flatmap(
    lambda labels: st.tuples(st.just(np.array(labels)), st.integers(1, len(labels)))
)
NEWS = np.arange(12_000) % 4  # four labels, equally frequent


def counts(labels: np.ndarray, owners: np.ndarray, num_sites: int) -> np.ndarray:
    """(S, C) examples."""
    num_labels = labels.max() + 1
    return np.bincount(owners * num_labels + labels, minlength=num_sites * num_labels).reshape(num_sites, num_labels)


@pytest.mark.parametrize("name", SCHEMES)
@given(labels_and_sites, st.integers(0, 2**32), st.integers(0, 3))
def test_each_example_has_one_owner_and_each_site_at_least_the_minimum(
    name: str, labels_and_sites: tuple[np.ndarray, int], seed: int, minimum: int
) -> None:
    labels, num_sites = labels_and_sites
    minimum = min(minimum, len(labels) // num_sites)
    drawn = SCHEMES[name](labels, num_sites, seed)
    owners = partitioners.ensure_minimum(drawn, num_sites, seed, minimum)
    for assigned in (drawn, owners):
        shards = partitioners.shards(assigned, num_sites)
        assert len(shards) == num_sites
        assert all(shard.dtype == np.int64 and (np.diff(shard) > 0).all() for shard in shards), "in order"
        assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
        assert all((assigned[shard] == site).all() for site, shard in enumerate(shards))
    sizes = np.bincount(owners, minlength=num_sites)
    assert sizes.min() >= minimum
    if name in EVEN:
        assert sizes.max() - sizes.min() <= 1
        assert np.array_equal(drawn, owners), "no example has to be moved"
    again = partitioners.ensure_minimum(SCHEMES[name](labels, num_sites, seed), num_sites, seed, minimum)
    assert np.array_equal(owners, again)


@pytest.mark.parametrize("name", SEEDED)
def test_another_seed_yields_another_partition(name: str) -> None:
    assert not np.array_equal(SCHEMES[name](NEWS, 10, 1), SCHEMES[name](NEWS, 10, 2))


@given(labels_and_sites)
def test_by_label_gives_contiguous_runs_of_the_sorted_labels(labels_and_sites: tuple[np.ndarray, int]) -> None:
    labels, num_sites = labels_and_sites
    per_site = [labels[shard] for shard in partitioners.shards(partitioners.by_label(labels, num_sites), num_sites)]
    assert all(a.max() <= b.min() for a, b in itertools.pairwise(per_site))


@pytest.mark.parametrize("labels", [NEWS, np.sort(NEWS)], ids=["mixed", "sorted"])
@pytest.mark.parametrize(
    "scheme",
    [lambda labels: partitioners.iid(labels, 40, 1), *(
        lambda labels, law=law: partitioners.sizes(labels, 8, 1, law, 0.5) for law in SIZE_LAWS
    )],
    ids=["iid", *SIZE_LAWS],
)  # fmt: skip
def test_random_partitions_give_all_sites_the_same_label_distribution(
    scheme: Callable[[np.ndarray], np.ndarray], labels: np.ndarray
) -> None:
    """A file sorted by label, too: rows in the order of the file would show."""
    owners = scheme(labels)
    per_site = counts(labels, owners, owners.max() + 1)
    expected = per_site.sum(axis=1, keepdims=True) / 4
    # Each count is hypergeometric, with a variance of less than n × ¼ × ¾: 5 standard deviations.
    assert (abs(per_site - expected) < 5 * np.sqrt(0.75 * expected)).all()


def test_iid_still_yields_the_shards_of_earlier_versions() -> None:
    """Jobs started before there were other partitions must resume with the same shards."""
    order = seeding.generator(7, "shards").permutation(11)
    shards = partitioners.shards(partitioners.iid(np.zeros(11, int), 3, 7), 3)
    assert [shard.tolist() for shard in shards] == [sorted(part) for part in (order[:4], order[4:8], order[8:])]


def test_dirichlet_approaches_iid_for_a_huge_alpha_and_one_site_per_label_for_a_tiny_alpha() -> None:
    labels = np.repeat(np.arange(4), (1000, 2000, 3000, 4000))
    per_site = counts(labels, partitioners.dirichlet(labels, 10, 1, 1e9), 10)
    # Shares of 1/10 ± 1e-5, whose sums are rounded.
    assert (abs(per_site - np.array([100, 200, 300, 400])) <= 1).all()
    per_site = counts(labels, partitioners.dirichlet(labels, 10, 1, 1e-6), 10)
    assert ((per_site > 0).sum(axis=0) == 1).all()


def test_the_shares_of_a_label_have_the_variance_of_the_dirichlet_distribution() -> None:
    # A share p_s ~ Beta(alpha, (S - 1) alpha) has mean 1/S and variance (S - 1) / (S² (S alpha + 1)).
    num_sites, alpha = 5, 0.4
    labels = np.repeat(np.arange(500), 200)
    shares = counts(labels, partitioners.dirichlet(labels, num_sites, 3, alpha), num_sites) / 200
    expected = (num_sites - 1) / (num_sites**2 * (num_sites * alpha + 1))
    assert shares.var() == pytest.approx(expected, rel=0.1)
    assert shares.mean(axis=1) == pytest.approx(1 / num_sites, abs=0.05), "no site is favoured"


def test_dirichlet_rounding_favours_no_site_if_labels_have_fewer_examples_than_there_are_sites() -> None:
    labels = np.repeat(np.arange(50), 10)
    sizes = np.bincount(partitioners.dirichlet(labels, 100, 1, 1e9), minlength=100)
    # 50 × 10 examples, each at one of 100 sites: Binomial(50, 1/10), of which 20 or more have a chance of 1e-8.
    assert sizes.max() < 20


@pytest.mark.parametrize("alpha", [1e-9, 0.05, 1e9])
def test_balanced_sites_have_equal_sizes_but_different_labels(alpha: float) -> None:
    labels = np.repeat(np.arange(4), (1000, 2000, 3000, 4000))
    per_site = counts(labels, partitioners.dirichlet_balanced(labels, 40, 1, alpha), 40)
    assert (per_site.sum(axis=1) == 250).all()
    shares = per_site / 250
    if alpha == 1e9:
        # Multinomial(250, prior), except for the last sites, which receive the remainder: 5 standard deviations of a count.
        prior = np.array([0.1, 0.2, 0.3, 0.4])
        assert (abs(shares[:30] - prior) < 5 * np.sqrt(prior * (1 - prior) / 250)).all()
    else:  # most sites have one label; only sites whose label ran out have another
        assert (shares.max(axis=1) > 0.9).mean() > (0.85 if alpha == 1e-9 else 0.5)
    if alpha == 1e-9:  # each label runs out at one site: at most C - 1 sites have two
        assert ((per_site > 0).sum(axis=1) > 1).sum() <= 3


def test_labels_per_site_assigns_pieces_of_the_examples_sorted_by_label() -> None:
    # 40 × 3 pieces of 100: each lies within one label of 3,000, so a site has at most 3 labels, and 300 examples.
    per_site = counts(NEWS, partitioners.labels_per_site(NEWS, 40, 1, 3), 40)
    assert (per_site.sum(axis=1) == 300).all()
    assert (per_site % 100 == 0).all()
    assert (per_site > 0).sum(axis=1).max() == 3
    # 7 × 2 pieces of 857 or 858: a piece can hold at most two of the four labels, as labels are longer than pieces.
    per_site = counts(NEWS, partitioners.labels_per_site(NEWS, 7, 1, 2), 7)
    assert (per_site > 0).sum(axis=1).max() <= 4
    assert (per_site > 0).sum() <= 14 + 3, "one label per piece, and 3 boundaries between labels"


def test_power_law_sizes_decrease_with_rank_and_lognormal_sizes_have_the_requested_spread() -> None:
    sizes = np.sort(np.bincount(partitioners.sizes(NEWS, 20, 1, "power", 1.5)))[::-1]
    weights = np.arange(1, 21) ** -1.5
    assert abs(sizes - 12_000 * weights / weights.sum()).max() <= 1
    logarithms = np.log(np.bincount(partitioners.sizes(np.zeros(10**6, int), 1000, 1, "lognormal", 0.7)))
    # The standard deviation of 1,000 normal numbers has a standard error of sigma / √2000 = 0.016.
    assert logarithms.std() == pytest.approx(0.7, abs=0.06)


def test_sites_are_topped_up_from_the_largest_sites_only() -> None:
    owners = np.repeat([0, 1, 2, 4], [10, 7, 4, 1])
    moved = partitioners.ensure_minimum(owners, 5, 1, 3)
    # Site 3 lacks 3 and site 4 lacks 2: sites 0 and 1 are lowered to 6 each, and site 2 keeps its 4.
    assert np.bincount(moved).tolist() == [6, 6, 4, 3, 3]
    assert (moved != owners).sum() == 5
    assert (moved[owners == 2] == 2).all()
    others = [partitioners.ensure_minimum(owners, 5, seed, 3) for seed in range(5)]
    assert len({tuple(np.flatnonzero(other != owners)) for other in others}) > 1, (
        "the moved examples are drawn at random"
    )


def test_partition_by_value_gives_each_site_exactly_the_rows_of_its_value() -> None:
    values = ["b", "a", "c", "a", "b", "b"]
    shards = partitioners.shards(partitioners.by_value(values, {"a": 0, "b": 1, "c": 2}), 3)
    assert [shard.tolist() for shard in shards] == [[1, 3], [0, 4, 5], [2]]


@pytest.mark.parametrize(
    ("num_sites", "number", "message"),
    [
        (2, 5, "labels_per_site=5: the training examples have 4 labels; lower it"),
        (5, 3, "labels_per_site=3: 5 sites would need 15 pieces of 12 training examples; lower it, or use fewer sites"),
    ],
)
def test_too_many_labels_per_site_are_refused(num_sites: int, number: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        partitioners.labels_per_site(np.arange(12) % 4, num_sites, 1, number)


@pytest.mark.parametrize("scheme", [
    lambda labels: partitioners.dirichlet(labels, 6, 1, 0.5),
    lambda labels: partitioners.dirichlet_balanced(labels, 6, 1, 0.5),
    lambda labels: partitioners.labels_per_site(labels, 6, 1, 1),
    lambda labels: partitioners.ensure_minimum((np.arange(12_000) % 12 == 0).astype(int), 6, 1, 2_000),
])  # fmt: skip
def test_the_rows_of_a_label_are_drawn_at_random(scheme: Callable[[np.ndarray], np.ndarray]) -> None:
    """Files may be sorted, e.g. by date: a site's rows come from all parts of its labels, not from one run."""
    labels = np.repeat(np.arange(4), 3000)
    place = np.tile(np.arange(3000), 4) / 3000  # of a row within its label, uniform with variance 1/12
    owners = scheme(labels)
    for site in range(6):
        for label in range(4):
            own = place[(owners == site) & (labels == label)]
            if 100 < len(own) < 2900:
                assert own.mean() == pytest.approx(0.5, abs=5 / np.sqrt(12 * len(own)))


@pytest.mark.parametrize("law", SIZE_LAWS)
def test_no_site_number_is_favoured_by_skewed_sizes(law: str) -> None:
    """Over many seeds, the largest site is anywhere."""
    largest = [int(np.bincount(partitioners.sizes(NEWS, 5, seed, law, 1.0)).argmax()) for seed in range(300)]
    shares = np.bincount(largest, minlength=5) / 300
    assert shares == pytest.approx(0.2, abs=5 * np.sqrt(0.2 * 0.8 / 300))


def test_rows_that_are_moved_come_from_all_large_sites() -> None:
    """Sites 2 and 3 receive 300 of the 600 rows that sites 0 and 1 give up, 300 each: about 150 from either."""
    owners = np.repeat([0, 1], 1000)
    moved = partitioners.ensure_minimum(owners, 4, 1, 300)
    for site in (2, 3):
        from_site_1 = int(owners[moved == site].sum())
        # Hypergeometric: 300 drawn from 600, half of which are of site 1; variance 300 × ¼ × 300 / 599.
        assert from_site_1 == pytest.approx(150, abs=5 * np.sqrt(300 / 4 * 300 / 599))
