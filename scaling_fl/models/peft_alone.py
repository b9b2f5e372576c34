"""peft, imported without bitsandbytes; import this module first.

Where peft finds bitsandbytes, it imports it, and that starts CUDA: no process that is forked afterwards could use a GPU.
What needs bitsandbytes imports it in its own process, without peft (`four_bit.py`).
"""

import sys

sys.modules["bitsandbytes"] = None  # type: ignore[assignment] # as if it weren't installed
from peft import import_utils  # noqa: E402

import_utils.is_bnb_available()  # peft remembers both answers
import_utils.is_bnb_4bit_available()
del sys.modules["bitsandbytes"]
