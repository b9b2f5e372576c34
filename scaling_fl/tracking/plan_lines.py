"""The lines that describe a plan: its sites, model, task and shards."""

from collections.abc import Iterator

from scaling_fl.federated import cohort
from scaling_fl.federated.run_plan import Plan

_MAX_SITES_SHOWN = 16


def plan_lines(plan: Plan) -> Iterator[str]:
    """The lines above the table of rounds; on nodes other than node 0, where it is shown."""
    config, devices = plan.config, sorted(set(plan.devices))
    through = "shared memory" if devices == ["cpu"] else "the memory of the GPU"
    through += ", NCCL between GPUs" * (len(devices) > 1)
    sites = (f"baseline {config.baseline}: " if config.baseline else "") + _number(plan.num_sites, "site")
    if not plan.one_site_per_worker:
        about = "about " * (config.sampling == "poisson")
        sites += f", {about}{cohort.size(config, plan.num_sites):,} a round, in {_number(len(plan.devices), 'process')}"
    if plan.nodes:
        sites += f" on {len(set(plan.nodes))} nodes ({_number(len(plan.ranks_here), 'process')} here)"
        through += ", then over the network by one process per node"
    yield (
        f"{sites} on {', '.join(devices)}, {_number(plan.threads, 'thread')} each; "
        f"aggregation through {through}, control over gloo"
    )
    if plan.node > 0:
        yield f"this is node {plan.node}: node 0 shows the rounds, and keeps records and checkpoints"
        return
    head = f", new: {', '.join(plan.new_parameters[:4])}{', …' * (len(plan.new_parameters) > 4)}"
    yield (
        f"model {config.model}: {plan.architecture}, {plan.num_parameters / 1e6:.1f} M parameters"
        + (f", {plan.num_trained:,} of them trained" if config.trainable != "all" else "")
        + (head if plan.new_parameters else ", its classification head kept" * bool(plan.label_names))
    )
    what = f"{plan.num_train:,} training and {plan.num_test:,} test"
    yield (
        f"task {config.task_name}: {what} "
        + (
            f"examples, {len(plan.label_names)} classes; {plan.num_truncated:,} training texts reach "
            if plan.label_names
            else f"{plan.unit} of up to "
        )
        + f"max_seq_len={config.max_seq_len}"
        + " tokens" * (not plan.label_names)
        + f"; {plan.num_truncated:,} training conversations are as long" * (plan.unit == "conversations")
    )
    sizes, entropies, attackers = plan.shard_sizes, plan.shard_entropies, plan.attackers
    device = "  device" if plan.one_site_per_worker else ""
    what = f"{'examples':>8}  {'label entropy':>13}" if plan.label_names else f"{plan.unit:>8}"
    width = max(8, len(plan.unit))
    yield f"{'site':>4}  {what}  {'steps/round':>11}{device}"
    for site in range(min(len(sizes), _MAX_SITES_SHOWN)):
        where = f"  {plan.devices[site]}" if plan.one_site_per_worker else ""
        least, most = plan.step_range(site)
        steps = f"{least:,}" + f" to {most:,}" * (most > least)
        attack = f"  attacks: {config.attack}" if site in attackers else ""
        entropy = f"  {entropies[site]:>8.3f} bits" if plan.label_names else ""
        yield f"{site:>4}  {sizes[site]:>{width},}{entropy}  {steps:>11}{where}{attack}"
    if len(sizes) > _MAX_SITES_SHOWN:
        yield (
            f"   … and {len(sizes) - _MAX_SITES_SHOWN:,} more; examples per site: {min(sizes):,} to "
            f"{max(sizes):,}, median {sorted(sizes)[(len(sizes) - 1) // 2]:,}"
        )
    if hidden := sorted(site for site in attackers if site >= _MAX_SITES_SHOWN):
        more = ", …" * (len(hidden) > _MAX_SITES_SHOWN)
        yield f"   … attacks: {config.attack} by sites {', '.join(map(str, hidden[:_MAX_SITES_SHOWN]))}{more}"
    if plan.round:
        yield f"job {config.job_name} resumes after round {plan.round}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun if count == 1 else 'processes' if noun == 'process' else noun + 's'}"
