"""The results of recent rounds in a checkpoint's header, from which a resumed job restores events that were lost.

The event file beside the checkpoints has all rounds up to the checkpoint before, unless the store refused it for a while.
"""

import json
from collections.abc import Mapping
from typing import Any

# safetensors refuses a header above 100 MB. The results of 64 sites take some 6 kB a round: 4 MiB hold 700 such rounds,
# or thousands of rounds of a few sites.
MAX_BYTES = 2**22


class History:
    """Results by round, the newest that fit into `MAX_BYTES` of JSON together."""

    def __init__(self, rounds: Mapping[str, Mapping[str, Any]] | None = None):
        self._rounds, self._sizes, self._total = dict[int, Mapping[str, Any]](), dict[int, int](), 0
        for round_, results in sorted((rounds or {}).items(), key=lambda item: int(item[0])):
            self.add(int(round_), results)

    def add(self, round_: int, results: Mapping[str, Any]) -> None:
        """Add a round, which must be the newest; the oldest rounds make room for it."""
        self._rounds[round_], self._sizes[round_] = results, len(json.dumps({str(round_): results}))
        self._total += self._sizes[round_]
        while self._total > MAX_BYTES:
            oldest = next(iter(self._rounds))
            self._total -= self._sizes.pop(oldest)
            del self._rounds[oldest]

    def before(self, round_: int) -> dict[str, Mapping[str, Any]]:
        """The rounds before `round_`, as in a header."""
        return {str(number): results for number, results in self._rounds.items() if number < round_}
