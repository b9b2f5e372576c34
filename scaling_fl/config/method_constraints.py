"""Constraints between the keys of methods: what an algorithm needs, and what it can't be combined with."""

from typing import TYPE_CHECKING, Any

from scaling_fl.config.sections.robustness import UNWEIGHTED
from scaling_fl.errors import UserError

if TYPE_CHECKING:
    from scaling_fl.config.schema import Config

_UNIFORM: dict[str, Any] = {"weighting": "uniform", "sampling": "uniform"}
# What the algorithms of the papers have, by method. SCAFFOLD and q-FFL have plain SGD steps. SCAFFOLD and FedDyn have plain
# means over a cohort that is drawn uniformly. With personal parameters there is no whole model of the server's.
_PLAIN: dict[str, dict[str, Any]] = {
    "scaffold": _UNIFORM | {
        "optimiser": "sgd", "max_grad_norm": None, "proximal_mu": 0.0, "fednova": False, "feddyn_alpha": 0.0,
    },
    "feddyn_alpha": _UNIFORM | {
        "proximal_mu": 0.0, "fednova": False, "server_optimiser": "sgd", "server_learning_rate": None,
        "server_momentum": None,
    },
    "personal": {
        "proximal_mu": 0.0, "scaffold": None, "feddyn_alpha": 0.0, "ditto_lambda": 0.0, "fairness_q": 0.0, "download": "fp32",
    },
    "fairness_q": {"optimiser": "sgd", "fednova": False, "scaffold": None, "feddyn_alpha": 0.0},
    "dp_clip": {
        "fednova": False, "scaffold": None, "feddyn_alpha": 0.0, "fairness_q": 0.0, "personal": None, "aggregation": "mean",
        "exact_sum": True,
    },
    "secure_aggregation": {
        "fednova": False, "scaffold": None, "feddyn_alpha": 0.0, "fairness_q": 0.0, "dp_clip": None, "aggregation": "mean", "exact_sum": True, "upload": "fp32",
    },
    "aggregation": {"fednova": False, "scaffold": None, "feddyn_alpha": 0.0, "fairness_q": 0.0},
}  # fmt: skip
# Why a method doesn't have what it is combined with, unless its paper's algorithm just has none of it.
_REASONS = {
    ("dp_clip", "exact_sum"): "the noise is drawn once and summed with the deltas in fixed point",
    ("dp_clip", "personal"): "ε is computed for a model that is shared whole",
    ("secure_aggregation", "exact_sum"): "masks cancel in whole numbers alone",
    ("secure_aggregation", "upload"): "a mask covers every value in fixed point, so nothing would be saved",
    ("secure_aggregation", "dp_clip"): "the server clips deltas, which masks hide from it",
    ("secure_aggregation", "aggregation"): "a robust aggregation looks at single deltas, which masks hide",
    ("aggregation", "scaffold"): "it combines deltas alone, and not the control variates beside them",
    ("aggregation", "feddyn_alpha"): "the server's term needs the plain mean",
}
_OF_PRIVACY = (
    "dp_noise_multiplier", "dp_epsilon", "dp_delta", "dp_clip_quantile", "dp_clip_rate", "dp_count_noise", "dp_seed",
)  # fmt: skip
_MOST_SECURE = 64  # sites: the simulation draws and shares a secret for each pair of them
# Keys of federated training, which no baseline has.
_FEDERATED = (
    "scaffold", "feddyn_alpha", "fednova", "fairness_q", "proximal_mu", "local_epochs_range", "weighting", "aggregation",
    "attack", "upload", "download", "personal", "ditto_lambda", "dp_clip", "secure_aggregation",
)  # fmt: skip


def check(config: "Config") -> None:
    """Raise `UserError` at the first keys that contradict each other, or require another key."""
    lengths = ("num_local_epochs", "num_local_steps", "local_epochs_range")
    given = [name for name in lengths if is_set(config, name)]
    if len(given) > 1:
        typed = " ".join(f"{name}={config.to_mapping()[name]}".replace(", ", ",") for name in given)
        raise UserError(f"{typed}: each sets the length of local training; leave all but one of them out")
    if config.fednova and config.optimiser != "sgd":
        raise UserError(
            f"fednova=True optimiser={config.optimiser}: FedNova counts steps of plain SGD; set optimiser=sgd, or leave out "
            "fednova"
        )
    _check_plain(config)
    _check_robustness(config)
    _check_upload(config)
    _check_own(config)
    _check_privacy(config)
    if config.server_nesterov and (config.server_optimiser != "sgd" or not config.server_momentum):
        raise UserError(
            "server_nesterov=True: Nesterov's momentum belongs to server_optimiser=sgd; set server_momentum=0.9 as well, or "
            "leave out server_nesterov"
        )
    takes = {"server_beta2": ("adam", "yogi"), "server_tau": ("adam", "yogi", "adagrad")}
    for name, optimisers in takes.items():
        value = getattr(config, name)
        if value is not None and config.server_optimiser not in optimisers:
            raise UserError(
                f"{name}={value:g}: server_optimiser={config.server_optimiser} doesn't use it; set server_optimiser to "
                f"{' or '.join(optimisers)}, or leave out {name}"
            )
    if config.weighting != "examples" and config.sampling == "by_examples":
        raise UserError(
            f"weighting={config.weighting}: sampling=by_examples weighs every draw the same; leave one of them out"
        )
    for name in _FEDERATED if config.baseline is not None else ():
        if is_set(config, name):
            raise UserError(
                f"{name}={getattr(config, name)}: belongs to federated training, which baseline={config.baseline} replaces; "
                "leave one of them out"
            )


def is_set(config: "Config", name: str) -> bool:
    """Whether the key has another value than its default."""
    return bool(getattr(config, name) != getattr(type(config), name))


def _check_plain(config: "Config") -> None:
    for method, needed in _PLAIN.items():
        if method == "aggregation" and config.aggregation in UNWEIGHTED:
            needed = needed | _UNIFORM
        wrong = {name: value for name, value in needed.items() if getattr(config, name) != value}
        if is_set(config, method) and wrong:
            found = " ".join(f"{name}={getattr(config, name)}" for name in wrong)
            remedy = " ".join(f"{name}={value}" for name, value in wrong.items())
            reason = _REASONS.get((method, next(iter(wrong))), "the method's algorithm has none of these")
            raise UserError(f"{method}={getattr(config, method)} {found}: {reason}; set {remedy}")


def _check_robustness(config: "Config") -> None:
    name, faulty = config.aggregation, config.faulty_sites
    if name in ("trimmed_mean", "krum") and faulty is None:
        raise UserError(
            f"aggregation={name}: set faulty_sites as well, the number of sites in a round that it withstands"
        )
    if faulty is not None and name not in ("trimmed_mean", "krum"):
        raise UserError(
            f"faulty_sites={faulty}: belongs to aggregation=trimmed_mean or krum, not {name}; leave out faulty_sites"
        )
    if config.krum_sites != 1 and name != "krum":
        raise UserError(
            f"krum_sites={config.krum_sites}: belongs to aggregation=krum, not {name}; leave out krum_sites"
        )
    if (config.attack is None) != (config.attackers is None):
        given, missing = ("attackers", "attack") if config.attack is None else ("attack", "attackers")
        raise UserError(
            f"{given}={getattr(config, given)}: {missing} is not set; set both, such as attack=sign_flip attackers=2"
        )
    if config.attack_strength is not None and config.attack in (None, "label_flip"):
        raise UserError(
            f"attack_strength={config.attack_strength:g}: belongs to attack=sign_flip, gaussian or scale; leave it out"
        )


def _check_upload(config: "Config") -> None:
    if is_set(config, "topk_share") and config.upload != "topk":
        raise UserError(
            f"topk_share={config.topk_share:g}: belongs to upload=topk, not {config.upload}; leave out topk_share"
        )
    if not config.error_feedback and config.upload == "fp32":
        raise UserError("error_feedback=False: upload=fp32 leaves nothing out; leave out error_feedback")


def _check_own(config: "Config") -> None:
    if is_set(config, "site_test_fraction") and config.site_test != "held_back":
        raise UserError(
            f"site_test_fraction={config.site_test_fraction:g}: belongs to site_test=held_back; set site_test=held_back as "
            "well, or leave it out"
        )
    if config.fine_tune_steps and config.site_test is None:
        raise UserError(
            f"fine_tune_steps={config.fine_tune_steps}: fine-tuned models are evaluated on each site's own test rows, and "
            "there are none; set site_test=held_back as well"
        )
    if config.head_init == "independent" and config.trainable not in ("all", "head"):
        raise UserError(
            f"head_init=independent trainable={config.trainable}: each site would have another head, which may never be "
            "averaged; set trainable=all or head, or head_init=shared"
        )
    for name in ("scaffold", "feddyn_alpha", "fednova", "fairness_q", "dp_clip", "ditto_lambda"):
        if config.head_init == "independent" and is_set(config, name):
            raise UserError(
                f"head_init=independent {name}={getattr(config, name)}: the step from the server's head to a site's own would "
                f"count as the site's training; set head_init=shared, or leave out {name}"
            )
    if config.attack == "label_flip" and config.scaffold == "I":
        raise UserError(
            "attack=label_flip scaffold=I: control variates would come from the true labels; set scaffold=II"
        )
    if config.personal is not None and config.attack not in (None, "label_flip"):
        raise UserError(
            f"personal={config.personal} attack={config.attack}: it would reach parameters that don't travel; set "
            "attack=label_flip, or leave out personal"
        )
    if config.ditto_lambda > 0 and config.site_test is None:
        raise UserError(
            f"ditto_lambda={config.ditto_lambda:g}: own models are evaluated on each site's own test rows, and there are "
            "none; set site_test=held_back as well"
        )
    if config.sampling == "poisson" and config.baseline is not None:
        raise UserError(f"sampling=poisson: not for baseline={config.baseline}; leave one of them out")


def _check_privacy(config: "Config") -> None:
    for name in ("secure_threshold", "secure_dropout"):
        if is_set(config, name) and not config.secure_aggregation:
            raise UserError(
                f"{name}={getattr(config, name)}: belongs to secure_aggregation=True; set it as well, or leave out {name}"
            )
    if config.dp_clip is None:
        given = [name for name in _OF_PRIVACY if is_set(config, name)]
        if given:
            raise UserError(
                f"{given[0]}={getattr(config, given[0])}: there is no privacy without dp_clip; set it as well"
            )
        return
    if (config.dp_noise_multiplier is None) == (config.dp_epsilon is None):
        both = "both are" if config.dp_epsilon is not None else "neither is"
        raise UserError(f"dp_clip={config.dp_clip:g}: set dp_noise_multiplier or dp_epsilon; {both} set")
    if config.dp_delta is None:
        raise UserError(f"dp_clip={config.dp_clip:g}: set dp_delta as well, far below 1 / number of sites")
    if config.weighting != "uniform":
        raise UserError(
            f"dp_clip={config.dp_clip:g} weighting={config.weighting}: with such weights, one site may count as much as all "
            "others together, and no noise hides it; set weighting=uniform"
        )
    samples = config.participation is not None or config.sites_per_round is not None
    if samples and config.sampling != "poisson":
        raise UserError(
            f"dp_clip={config.dp_clip:g} sampling={config.sampling}: ε is known for cohorts in which each site takes part "
            "independently of the others; set sampling=poisson, or let all sites take part"
        )
    if config.dp_clip_quantile is None:
        for name in ("dp_clip_rate", "dp_count_noise"):
            if is_set(config, name):
                raise UserError(
                    f"{name}={getattr(config, name):g}: belongs to adaptive clipping; set dp_clip_quantile as well, or "
                    f"leave out {name}"
                )


def check_cohort(config: "Config", num_sites: int, per_round: int) -> None:
    """Raise `UserError` if a job has too few sites for its keys. `per_round`: sites that train in a round."""
    if config.attackers is not None and config.attackers > num_sites:
        raise UserError(f"attackers={config.attackers}: there are {num_sites} sites; lower it")
    if config.secure_aggregation and not (config.secure_threshold or 1) <= per_round <= _MOST_SECURE:
        raise UserError(
            f"secure_aggregation=True: {per_round} sites in a round; expected {config.secure_threshold or 1} (secure_threshold) "
            f"to {_MOST_SECURE}, since each pair of sites has a mask; change the number of sites"
        )
    if config.faulty_sites is None:
        return
    least = 2 * config.faulty_sites + (3 if config.aggregation == "krum" else 1)
    if per_round < least:
        raise UserError(
            f"aggregation={config.aggregation} faulty_sites={config.faulty_sites}: needs {least} or more sites in a round, "
            f"found {per_round}; lower faulty_sites, or use more sites"
        )
    if config.krum_sites > (most := per_round - config.faulty_sites - 2):
        raise UserError(f"krum_sites={config.krum_sites}: at most {most} of {per_round} sites have a score; lower it")
