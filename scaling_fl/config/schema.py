"""The configuration of a run: plain values, validated once; errors name key, value and remedy."""

import dataclasses
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from scaling_fl.config import adapter_constraints, constraints
from scaling_fl.config.key_names import meant
from scaling_fl.config.parsing import parse
from scaling_fl.config.sections.adapters import AdapterKeys
from scaling_fl.config.sections.commands import CommandKeys
from scaling_fl.config.sections.communication import CommunicationKeys
from scaling_fl.config.sections.data import DataKeys
from scaling_fl.config.sections.methods import MethodKeys
from scaling_fl.config.sections.own import OwnKeys
from scaling_fl.config.sections.privacy import PrivacyKeys
from scaling_fl.config.sections.robustness import RobustnessKeys
from scaling_fl.config.sections.run import RunKeys
from scaling_fl.config.sections.sites import SiteKeys
from scaling_fl.config.sections.study import StudyKeys
from scaling_fl.config.sections.training import TrainingKeys
from scaling_fl.errors import UserError
from scaling_fl.text import one_line


@dataclass(frozen=True)
class Config(
    SiteKeys,
    DataKeys,
    TrainingKeys,
    MethodKeys,
    OwnKeys,
    CommunicationKeys,
    AdapterKeys,
    RobustnessKeys,
    PrivacyKeys,
    RunKeys,
    StudyKeys,
    CommandKeys,
):
    """All settings of a run. Values typed by a user must go through `from_mapping`, which validates them."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Config":
        """Validate values typed by the user.

        Raises `UserError` with all unknown keys, or at the first key that is of the wrong type or out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [_unknown(name, value, fields) for name, value in values.items() if name not in fields]
        if unknown:
            raise UserError(" Also ".join(unknown))
        hints = typing.get_type_hints(cls)
        config = cls(**{name: parse(fields[name], hints[name], value) for name, value in values.items()})
        config = adapter_constraints.resolved(config)
        constraints.check(config)
        return config

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, with lists for tuples, as Sacred and JSON require."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}

    def named(self, job_name: str) -> "Config":
        """The configuration of the job of this name: `checkpoints_dir` without the placeholder."""
        folder = self.checkpoints_dir
        folder = None if folder is None else folder.replace("{job_name}", job_name)
        return dataclasses.replace(self, job_name=job_name, checkpoints_dir=folder)

    def to_record(self) -> dict[str, Any]:
        """Like `to_mapping`, with the placeholder in the default folder: another job_name then means another folder."""
        is_default = self.checkpoints_dir == Config().named(str(self.job_name)).checkpoints_dir
        return self.to_mapping() | ({"checkpoints_dir": Config.checkpoints_dir} if is_default else {})

    @property
    def all_sites(self) -> int:
        """The number of sites, as far as keys say: `partition=column` leaves it to the data."""
        return self.num_sites or len(self.site_ids)

    @property
    def aggregates(self) -> bool:
        """Whether deltas are aggregated."""
        return self.baseline != "local_only"

    @property
    def has_global_model(self) -> bool:
        """Whether all parameters are aggregated into one model."""
        return self.aggregates and self.personal is None

    @property
    def no_global_model(self) -> str:
        """The key because of which there is none."""
        return "baseline=local_only" if self.personal is None else f"personal={self.personal}"

    @property
    def has_own_models(self) -> bool:
        """Whether sites have models of their own, if only for their evaluation."""
        return not self.has_global_model or self.ditto_lambda > 0 or self.fine_tune_steps > 0

    @property
    def keeps_site_state(self) -> bool:
        """Whether sites keep state between rounds."""
        methods = self.scaffold is not None or self.feddyn_alpha > 0 or self.keeps_upload_error or self.ditto_lambda > 0
        return self.keep_optimiser or methods or not self.has_global_model

    @property
    def keeps_upload_error(self) -> bool:
        """Whether sites keep what a compressed upload leaves out."""
        return self.upload != "fp32" and self.error_feedback

    def checkpoint_due(self, round_: int) -> bool:
        """Whether a checkpoint is written after `round_`."""
        due = round_ > 0 and (round_ % self.checkpoint_every == 0 or round_ == self.num_rounds)
        return due and self.checkpoints_dir is not None

    def evaluation_due(self, round_: int) -> bool:
        """Whether the global model is evaluated after `round_`."""
        return round_ % self.eval_every == 0 or round_ == self.num_rounds

    def evaluation_batch_size(self, num_examples: int) -> int:
        """Aim for at least 64 batches of at least 32 examples, so that small sets still keep all workers busy."""
        return min(self.val_batch_size, max(32, -(-num_examples // 64)))


def _unknown(name: str, value: Any, keys: Collection[str]) -> str:
    close = meant(name, keys)
    if isinstance(value, Mapping):
        hint = "keys stand alone, without a heading above them"
    else:
        hint = f"did you mean {close}?" if close else "`help` lists the keys"
    return f"{name}={one_line(repr(value), 80)}: unknown key; {hint}"
