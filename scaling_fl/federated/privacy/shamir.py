"""Shamir's secret sharing (Shamir 1979): any t of the shares of a secret give it back, and fewer say nothing of it."""

import secrets
from collections.abc import Mapping

PRIME = 2**255 - 19  # of the field; secrets are below it
SHARE_BYTES = 32


def split(secret: int, holders: list[int], threshold: int) -> dict[int, int]:
    """A share for each of `holders`, numbers from 1 on: the values there of a random polynomial of degree t − 1."""
    coefficients = [secret, *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {holder: _value(coefficients, holder) for holder in holders}


def reconstruct(shares: Mapping[int, int]) -> int:
    """The secret, of at least `threshold` shares by holder: Lagrange's interpolation at 0."""
    secret = 0
    for holder, share in shares.items():
        numerator = denominator = 1
        for other in shares:
            if other != holder:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - holder) % PRIME
        secret += share * numerator * pow(denominator, -1, PRIME)
    return secret % PRIME


def _value(coefficients: list[int], at: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * at + coefficient) % PRIME
    return value
