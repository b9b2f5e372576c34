"""The plan of a run, from the preparation to launcher and workers. No torch: the launcher unpickles it."""

from dataclasses import dataclass, field
from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.federated import attackers, cohort, local_work
from scaling_fl.federated.best_round import BestRound


@dataclass(frozen=True)
class Plan:
    """All that launcher and workers need to know of a prepared run."""

    config: Config
    folder: str  # the work folder
    round: int  # the last complete round; 0 for a new job
    finished: bool  # all rounds are complete and the final model is written
    threads: int  # per site
    devices: tuple[str, ...]  # per worker
    architecture: str
    num_parameters: int
    new_parameters: tuple[str, ...]  # of the model; initialised from the seed (the head)
    label_names: tuple[str, ...]  # none if tokens are predicted
    shard_sizes: tuple[int, ...]
    shard_entropies: tuple[float, ...]  # bits
    num_train: int  # examples in the shards
    num_test: int
    num_truncated: int  # training texts that reach max_seq_len
    data_digest: str
    pad_token_id: int
    environment: dict[str, str]  # what bitwise reproducibility depends on: versions, processor
    notes: tuple[str, ...]  # for the user
    pad_left: bool = False  # batches are padded on the left, not on the right
    pad_to: int = 1  # tokens that batches have at least
    num_held_back: int = 0  # training examples that no site trains on
    vocab_size: int = 0
    base_dtype: str = "float32"  # of the pre-trained weights
    unit: str = "examples"  # what is counted: texts, conversations, or blocks of documents
    num_trained: int = 0  # parameters; fewer than all with `trainable`
    noise_multiplier: float | None = None  # of differential privacy, as given or solved for
    site_test_sizes: tuple[int, ...] = ()  # by site: test rows of its own
    label_counts: tuple[tuple[int, ...], ...] = ()  # by site: training examples of each label
    best: BestRound | None = None  # the best round so far, by `keep_best`
    metrics: dict[str, Any] = field(default_factory=dict)  # of `round`, from its checkpoint
    reported: bool = False  # whether `metrics` are complete; if not, `round` has yet to be evaluated
    history: dict[str, dict[str, Any]] = field(default_factory=dict)  # metrics of recent reported rounds, by round
    # The model's identity, independent of its path, which a resumed job must match: see `checkpoint.resume.check_origin`.
    origin: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # of what must be identical on all nodes
    port: int = 0  # a free port of node 0 for the workers' rendezvous
    # With several nodes:
    nodes: tuple[int, ...] = ()  # per worker
    node: int = 0  # this one
    rendezvous: str = ""  # URL; a file in the work folder if empty
    interface: str | None = None  # network interface to the other nodes

    @property
    def num_outputs(self) -> int:
        """Among so many classes, or tokens, the model chooses."""
        return len(self.label_names) or self.vocab_size

    @property
    def num_sites(self) -> int:
        return len(self.shard_sizes)

    @property
    def attackers(self) -> frozenset[int]:
        """The sites that attack, in a study of that."""
        return attackers.drawn(self.config, self.num_sites)

    @property
    def one_site_per_worker(self) -> bool:
        """Whether worker N always trains site N and no other."""
        everyone = cohort.is_everyone(self.config, self.num_sites)
        return everyone and self.num_sites == len(self.devices) and self.config.baseline != "centralised"

    @property
    def ranks_here(self) -> list[int]:
        """Ranks of this node's workers."""
        return [rank for rank in range(len(self.devices)) if not self.nodes or self.nodes[rank] == self.node]

    def worker_name(self, rank: int) -> str:
        """The worker's name in messages."""
        return f"{'site' if self.one_site_per_worker else 'worker'} {rank} ({self.devices[rank]})"

    def step_range(self, site: int) -> tuple[int, int]:
        """Least and largest number of local steps of a site per round in which it takes part."""
        return local_work.step_range(self.config, self.shard_sizes[site])
