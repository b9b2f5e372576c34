"""What the preparation hands to launcher and workers. The launcher unpickles it, so this module needs no torch."""

from dataclasses import dataclass, field
from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.federated import cohort
from scaling_fl.federated.best_round import BestRound


@dataclass(frozen=True)
class Plan:
    """What the preparation found out: enough for launcher and workers to do their part."""

    config: Config
    folder: str  # the work folder
    round: int  # the last complete round; 0 for a new job
    finished: bool  # nothing is left to do: all rounds are done and the final model is written
    threads: int  # per site
    devices: tuple[str, ...]  # per worker
    architecture: str
    num_parameters: int
    new_parameters: tuple[str, ...]  # of the model, drawn anew (the head)
    label_names: tuple[str, ...]
    shard_sizes: tuple[int, ...]
    shard_entropies: tuple[float, ...]  # bits
    num_train: int  # examples on which the sites train
    num_test: int
    num_cut: int  # training texts that fill max_seq_len
    data_digest: str
    pad_token_id: int
    environment: dict[str, str]  # what bitwise equality depends on: versions, processor
    notes: tuple[str, ...]  # what the user should know
    num_held_back: int = 0  # training examples that no site trains on
    best: BestRound | None = None  # the best round so far, by `keep_best`
    metrics: dict[str, Any] = field(default_factory=dict)  # those of `round`, as its checkpoint tells them
    reported: bool = False  # whether they are all; if not, that round is still to be evaluated
    history: dict[str, dict[str, Any]] = field(default_factory=dict)  # those of all rounds that are reported
    # What a resume must find again of the model, whatever its path: see `resume.check_origin`.
    origin: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # of what all nodes must have alike
    port: int = 0  # where node 0's workers could meet the others'
    # With several nodes:
    nodes: tuple[int, ...] = ()  # per worker
    node: int = 0  # this one
    rendezvous: str = ""  # where workers meet; else in the work folder
    interface: str | None = None  # the network's, over which the others are reached

    @property
    def num_sites(self) -> int:
        return len(self.shard_sizes)

    @property
    def one_site_per_worker(self) -> bool:
        """Whether worker N trains site N, and nothing else."""
        everyone = cohort.size(self.config, self.num_sites) == self.num_sites == len(self.devices)
        return everyone and self.config.baseline != "centralised"

    @property
    def ranks_here(self) -> list[int]:
        """The workers of this node."""
        return [rank for rank in range(len(self.devices)) if not self.nodes or self.nodes[rank] == self.node]

    def worker_name(self, rank: int) -> str:
        """What a worker is called in messages."""
        return f"{'site' if self.one_site_per_worker else 'worker'} {rank} ({self.devices[rank]})"

    def local_steps(self, site: int) -> int:
        """Local steps of a site in a round in which it takes part."""
        return self._steps(self.shard_sizes[site])

    def _steps(self, examples: int) -> int:
        return -(-examples // self.config.batch_size) * self.config.num_local_epochs

    def round_steps(self, round_: int) -> int:
        """Local steps of all sites of a round; 0 before the first."""
        if round_ == 0:
            return 0
        sizes = [self.shard_sizes[site] for site in cohort.draw(self.config, self.shard_sizes, round_)]
        if self.config.baseline == "centralised":
            sizes = [sum(sizes)]
        return sum(map(self._steps, sizes))

    @property
    def evaluation_steps(self) -> int:
        """Evaluation batches, over all workers."""
        models = 1 if self.config.has_global_model else self.num_sites
        return models * sum(-(-n // self.config.evaluation_batch_size(n)) for n in (self.num_test, self.num_held_back))
