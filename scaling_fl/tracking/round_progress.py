"""The progress of one round on this node: of each site, and of the round as a whole."""

from dataclasses import dataclass

from scaling_fl.config.schema import Config
from scaling_fl.federated import cohort, local_work
from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event

WAITING, TRAINING, DONE = "waiting", "training", "done"


@dataclass
class SiteProgress:
    """One site of the round's cohort."""

    number: int
    examples: int  # that it sees in the round
    steps: int
    done: int = 0  # steps
    state: str = WAITING
    order: int = 0  # in which the sites changed their state
    stalled: bool = False
    loss: float | None = None  # once it is done
    accuracy: float | None = None


class RoundProgress:
    """Follows the "progress" events of a round. Sites and steps are those of this node's workers.

    A round that is complete already when the workers start, such as round 0, is only evaluated.
    """

    def __init__(self, plan: Plan, round_: int):
        self.round, self._plan = round_, plan
        self.sites = {site.number: site for site in _cohort_here(plan, round_) if round_ > plan.round}
        self.local_steps = sum(site.steps for site in self.sites.values())
        self.evaluation_steps = _evaluation_here(plan, round_) if plan.config.evaluation_due(round_) else 0
        self.begun = False
        self._done: dict[int, int] = {}  # steps by worker
        self._current: dict[int, SiteProgress] = {}  # by worker
        self._changes = 0

    @property
    def total(self) -> int:
        """Local steps and evaluation batches."""
        return self.local_steps + self.evaluation_steps

    @property
    def done(self) -> int:
        return min(sum(self._done.values()), self.total)

    @property
    def evaluated(self) -> int:
        """Evaluation batches that are done."""
        return max(0, self.done - self.local_steps)

    @property
    def trained(self) -> bool:
        """Whether every site is done."""
        return all(site.state == DONE for site in self.sites.values())

    @property
    def examples(self) -> float:
        """Training examples that were seen, counted as often as they are seen."""
        return sum(site.examples * site.done / site.steps for site in self.sites.values())

    def count(self, state: str) -> int:
        """The number of sites in a state."""
        return sum(site.state == state for site in self.sites.values())

    def current_site(self, worker: int) -> SiteProgress | None:
        """The site that a worker trains, as far as is known."""
        return self._current.get(worker)

    def update(self, event: Event) -> None:
        """Take in a "progress" event of this round."""
        worker = event["worker"]
        self.begun = True
        self._done[worker] = event["done"]
        for number, loss, accuracy in event["trained"]:
            site = self.sites[number]
            site.loss, site.accuracy, site.stalled = loss, accuracy, False
            self._change(site, DONE, site.steps)
        self._current.pop(worker, None)
        if event["site"] is not None:
            site = self._current[worker] = self.sites[event["site"]]
            site.stalled = False
            self._change(site, TRAINING, event["site_done"])

    def _change(self, site: SiteProgress, state: str, done: int) -> None:
        site.done = done
        if site.state != state:
            self._changes += 1
            site.state, site.order = state, self._changes


def _cohort_here(plan: Plan, round_: int) -> list[SiteProgress]:
    """The sites that this node's workers train, as `WorkerSites` assigns them."""
    config, sizes, ranks = plan.config, plan.shard_sizes, set(plan.ranks_here)
    if round_ == 0:
        return []
    trained = cohort.trained(config, sizes, round_)
    if config.baseline == "centralised":
        here = [0] if 0 in ranks else []
    else:
        assigned = cohort.assign(sizes, trained, len(plan.devices))
        here = sorted(site for rank in ranks for site in assigned[rank])
    work = {site: local_work.of_site(config, trained[site], round_, site) for site in here}
    return [SiteProgress(site, work[site].examples, work[site].steps) for site in here]


def _evaluation_here(plan: Plan, round_: int) -> int:
    """The evaluation batches of this node's workers."""
    config, num_workers = plan.config, len(plan.devices)
    own = plan.site_test_sizes
    sets, of_all_sites = ([_batches(config, n) for n in sizes] for sizes in ((plan.num_test, plan.num_held_back), own))
    everyone = cohort.assign(plan.shard_sizes, range(plan.num_sites), num_workers)
    here = [site for rank in plan.ranks_here for site in everyone[rank]]
    steps = 0
    if config.has_global_model or round_ == 0:
        shared = [*sets, *([_batches(config, sum(own))] if config.has_global_model else [])]
        steps += sum(len(range(rank, batches, num_workers)) for rank in plan.ranks_here for batches in shared)
    else:
        steps += len(here) * sum(sets)
    if config.has_own_models and round_ > 0:
        steps += sum(of_all_sites[site] + config.fine_tune_steps for site in here if own and own[site])
    return steps


def _batches(config: Config, examples: int) -> int:
    return -(-examples // config.evaluation_batch_size(examples))
