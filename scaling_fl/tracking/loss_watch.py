"""Notices sites whose training loss leaves those of the other sites."""

import math
import statistics
from collections.abc import Mapping

from scaling_fl.tracking.round_table import number

_FEWEST_SITES = 4  # among three, one can't tell which of them is the odd one
_DEVIATIONS = 6.0
_MADS_TO_DEVIATION = 1.4826  # of a normal distribution: 1 / Φ⁻¹(3/4)


def far_above(losses: Mapping[int, float], num_labels: int) -> list[int]:
    """The sites whose loss isn't finite, or lies far above the others', in ascending order.

    Far above is a loss x with

        x > median + 6 × 1.4826 × MAD   and   x > 1.5 × median   and   x > ½ ln(classes)

    over at least four finite losses. MAD is the median absolute deviation from the median, which up to half of the sites
    can't distort; 1.4826 × MAD estimates the standard deviation. The second condition counts where nearly all sites
    agree, so that MAD is about 0. By the third, a site that has learned well isn't far above sites that have learned
    even better, such as those with a single label; ln(classes) is the loss of guessing. A low loss is no trouble.
    """
    finite = [loss for loss in losses.values() if math.isfinite(loss)]
    limit = math.inf
    if len(finite) >= _FEWEST_SITES:
        median = statistics.median(finite)
        deviation = _MADS_TO_DEVIATION * statistics.median(abs(loss - median) for loss in finite)
        limit = max(median + _DEVIATIONS * deviation, 1.5 * median, math.log(max(2, num_labels)) / 2)
    return sorted(site for site, loss in losses.items() if loss > limit or not math.isfinite(loss))


class LossWatch:
    """Notes sites that leave the others; a site that stays away is noted once, until it has come back."""

    def __init__(self, num_labels: int):
        self._num_labels = num_labels
        self._away: set[int] = set()

    def note(self, round_: int, losses: Mapping[int, float]) -> str | None:
        """A line on the sites that have left the others in this round, given the losses of its cohort."""
        away = far_above(losses, self._num_labels)
        new = [site for site in away if site not in self._away]
        self._away = self._away - losses.keys() | set(away)
        if not new:
            return None
        worst = max(new, key=lambda site: (not math.isfinite(losses[site]), losses[site]))
        more = f" and {len(new) - 1} more" if len(new) > 1 else ""
        who = f"site {worst}{more}"
        if not math.isfinite(losses[worst]):
            return f"note: round {round_}: the training loss of {who} isn't finite; lower learning_rate"
        median = statistics.median(filter(math.isfinite, losses.values()))
        return (
            f"note: round {round_}: the training loss {number(losses[worst], 9, 4)} of {who} is far above the sites' "
            f"median {number(median, 9, 4)}; check the texts and labels there"
        )
