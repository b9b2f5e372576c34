"""Keys that only commands other than `train` use."""

from dataclasses import dataclass

from scaling_fl.config.key import at_least, key
from scaling_fl.errors import UserError

COMMANDS_OF_KEY = {
    "checkpoint": ("evaluate", "export"),
    "site": ("evaluate", "export"),
    "csv_path": ("evaluate", "show_shards"),
    "all": ("show_shards",),
}
COMMANDS = frozenset(command for commands in COMMANDS_OF_KEY.values() for command in commands)


@dataclass(frozen=True)
class CommandKeys:
    """Commands other than train."""

    checkpoint: str | None = key(
        None,
        "for `evaluate` and `export`: a checkpoint (`…/round-000010.safetensors`), by default the newest of `job_name`; "
        "for `evaluate` also a folder of a trained model, or a hub id",
        may_change=True,
    )
    site: int | None = key(
        None,
        "for `evaluate` and `export`: number of a site, whose own model is meant (`personal`, `ditto_lambda`, "
        "`baseline=local_only`)",
        **at_least(0),
        may_change=True,
    )
    csv_path: str | None = key(
        None,
        "new CSV file to write: each row's label and prediction (`evaluate`), or the label counts of all sites (`show_shards`)",
        may_change=True,
    )
    all: bool = key(False, "for `show_shards`: True lists all sites and labels", may_change=True)


def check_command(config: CommandKeys, command: str) -> None:
    """Raise `UserError` if a key is set that `command` would ignore."""
    for name, commands in COMMANDS_OF_KEY.items():
        if command not in (*commands, "print_config") and getattr(config, name) not in (None, False):
            raise UserError(
                f"{name}={getattr(config, name)}: only {' and '.join(commands)} use{'s' * (len(commands) == 1)} it, not "
                f"{command}; leave it out"
            )
