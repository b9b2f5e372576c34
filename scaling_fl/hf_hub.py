"""The Hugging Face hub: whether it has a model or a data set, asked in seconds."""

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

from scaling_fl.errors import UserError


class Unreachable(UserError):
    """The hub doesn't answer, or this machine was told not to ask it."""


def find(kind: str, name: str, asked: str, instead: str) -> None:
    """Ask the hub for the "model" or "dataset" `name`; the libraries that load it would try for half a minute.

    Raises `UserError`, which says what was `asked`, if there is none; `Unreachable`, which also says what to do
    `instead`, if there is no answer.
    """
    try:
        api = HfApi()
        (api.model_info if kind == "model" else api.dataset_info)(name, timeout=10)
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{asked}: the hub has no {kind} {name} that is open to you; "
            "check the name, or set HF_TOKEN for a private one"
        ) from error
    except HFValidationError as error:
        raise UserError(
            f"{asked}: there is no such folder, and {name!r} can't be a name on the hub; {instead}"
        ) from error
    except OfflineModeIsEnabled as error:
        raise Unreachable(
            f"{asked}: it is not on this machine, and HF_HUB_OFFLINE says not to ask the hub; {instead}"
        ) from error
    except Exception as error:  # of the network, in many classes
        raise Unreachable(
            f"{asked}: it is not on this machine, and the hub can't be reached ({type(error).__name__}); {instead}"
        ) from error
