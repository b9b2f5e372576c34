"""The masks of secure aggregation: Bonawitz et al. 2017, figure 4. All sums are modulo 2^64.

With x_k the weighted delta of site k in fixed point, PRG a generator of pseudo-random 64-bit numbers, s_kj a secret that
sites k and j share, and b_k a secret of site k:

    y_k = x_k + PRG(b_k) + Σ_{j > k} PRG(s_kj) − Σ_{j < k} PRG(s_jk)

In the sum over all sites the pairwise masks cancel. For each site that has sent y_k, the server removes PRG(b_k), and for
each that dropped out, the pairwise masks that the others have added. It learns these secrets from shares that t sites hold:
of one site either b_k or its pairwise secrets, never both.

This is a simulation: all secrets are drawn in one place, where the protocol has the sites agree on keys.
"""

import hashlib
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scaling_fl.distributed.messages import sendable
from scaling_fl.federated.privacy import shamir

_CHUNK = 2**18  # 64-bit numbers of one call of the generator
_SECRET_BITS = 248  # a secret is below the prime of its shares
_KEY_BYTES = 32  # a public key of the key agreement
_SEAL_BYTES = 16  # that authenticated encryption adds to a message

Masked = npt.NDArray[np.int64]


@sendable
@dataclass(frozen=True)
class Secrets:
    """All secrets of a round, as shares: by site, or by pair of sites, then by holder."""

    sites: tuple[int, ...]  # ascending
    threshold: int
    own: dict[int, dict[int, int]]  # b_k
    pairs: dict[tuple[int, int], dict[int, int]]  # s_kj with k < j

    def own_secret(self, site: int, holders: Collection[int]) -> int:
        """b_k, of the shares that these sites hold."""
        return shamir.reconstruct(self._of(self.own[site], holders))

    def pair_secret(self, one: int, other: int, holders: Collection[int]) -> int:
        """s_kj, likewise."""
        return shamir.reconstruct(self._of(self.pairs[min(one, other), max(one, other)], holders))

    def _of(self, shares: dict[int, int], holders: Collection[int]) -> dict[int, int]:
        if len(holders) < self.threshold:
            raise ValueError(f"{len(holders)} shares are fewer than the threshold {self.threshold}")
        return {
            holder + 1: shares[holder + 1] for holder in sorted(holders)[: self.threshold]
        }  # 0 is the secret itself


def draw(sites: Collection[int], threshold: int) -> Secrets:
    """Draw and share the secrets of a round, by the operating system's cryptographic generator."""
    ordered = tuple(sorted(sites))
    holders = [site + 1 for site in ordered]

    def shared() -> dict[int, int]:
        return shamir.split(secrets.randbits(_SECRET_BITS), holders, threshold)

    pairs = [(one, other) for at, one in enumerate(ordered) for other in ordered[at + 1 :]]
    return Secrets(ordered, threshold, {site: shared() for site in ordered}, {pair: shared() for pair in pairs})


def add_masks(values: Masked, site: int, of_round: Secrets) -> None:
    """Turn x_k (n,) into y_k in place. The site knows its own secrets; here they come of the shares of all sites."""
    add(values, of_round.own_secret(site, of_round.sites), 1)
    for other in of_round.sites:
        if other != site:
            add(values, of_round.pair_secret(site, other, of_round.sites), 1 if other > site else -1)


def remove_masks(total: Masked, of_round: Secrets, sent: Collection[int], removed: Collection[int]) -> None:
    """Remove from Σ y_k (n,) over the sites that have `sent`, in place, the masks that the sites `removed` left in it.

    Of a site that has sent, that is its own mask, and of one that dropped out, the others' masks for it. The secrets come
    of the shares of the sites that have sent. Raises `ValueError` if these are fewer than the threshold.
    """
    for site in removed:
        if site in sent:
            add(total, of_round.own_secret(site, sent), -1)
            continue
        for other in sent:
            add(total, of_round.pair_secret(site, other, sent), -1 if site > other else 1)


def add(values: Masked, secret: int, sign: int) -> None:
    """Add sign × PRG(secret) to `values` (n,) in place, modulo 2^64."""
    start = 0
    for mask in _stream(secret, len(values)):
        part = values[start : start + len(mask)].view(np.uint64)
        (np.add if sign > 0 else np.subtract)(part, mask, out=part)
        start += len(mask)


def _stream(secret: int, count: int) -> Iterator[npt.NDArray[np.uint64]]:
    """PRG(secret): SHAKE-256 of secret and counter."""
    for number, start in enumerate(range(0, count, _CHUNK)):
        length = min(_CHUNK, count - start)
        seed = secret.to_bytes(32, "little") + number.to_bytes(8, "little")
        yield np.frombuffer(hashlib.shake_256(seed).digest(8 * length), np.uint64)


def num_unsent_bytes(num_sites: int, size: int) -> int:
    """What a site doesn't send that drops out after it has shared its secrets: the masked sum, and the last shares."""
    return 8 * size + num_sites * shamir.SHARE_BYTES


def num_bytes(num_sites: int, size: int) -> tuple[int, int]:
    """What the protocol makes a site receive and send beyond a float32 delta of `size` values.

    It sends two public keys, two sealed shares to each other site, the sum of its masks and delta in 64 bits in the place
    of 32, and a share for each site at the end; it receives the keys and shares of the others.
    """
    shares = (num_sites - 1) * 2 * (shamir.SHARE_BYTES + _SEAL_BYTES)
    return (
        num_sites - 1
    ) * 2 * _KEY_BYTES + shares, 2 * _KEY_BYTES + shares + 4 * size + num_sites * shamir.SHARE_BYTES
