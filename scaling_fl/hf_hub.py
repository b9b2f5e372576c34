"""The Hugging Face hub: a check, within seconds, that it has a model or a data set."""

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

from scaling_fl.errors import UserError


class Unreachable(UserError):
    """The hub doesn't answer, or offline mode forbids asking it."""


def check_exists(kind: str, name: str, setting: str, remedy: str) -> None:
    """Check that the hub has the "model" or "dataset" `name`, because the libraries would retry for half a minute.

    `setting` (the key and its value) begins each message, and `remedy` ends it. Raises `UserError` if the hub has no
    such name, and `Unreachable` if it doesn't answer.
    """
    try:
        api = HfApi()
        (api.model_info if kind == "model" else api.dataset_info)(name, timeout=10)
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{setting}: the hub has no {kind} {name} that you can access; "
            "check the name, or set HF_TOKEN if it is private"
        ) from error
    except HFValidationError as error:
        raise UserError(f"{setting}: there is no such folder, and {name!r} is not a valid hub id; {remedy}") from error
    except OfflineModeIsEnabled as error:
        raise Unreachable(
            f"{setting}: it is not on this machine, and HF_HUB_OFFLINE forbids asking the hub; {remedy}"
        ) from error
    except Exception as error:  # network errors come in many classes
        raise Unreachable(
            f"{setting}: it is not on this machine, and the hub can't be reached ({type(error).__name__}); {remedy}"
        ) from error
