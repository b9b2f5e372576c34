"""Imported by the fork server of jobs with adapters: peft, but not bitsandbytes.

Where peft finds bitsandbytes, it imports it, and that starts CUDA: no process forked afterwards could use a GPU. Whatever
needs bitsandbytes imports it in its own process; peft isn't involved (`models/four_bit.py`).
"""

import sys

sys.modules["bitsandbytes"] = None  # type: ignore[assignment] # as if it weren't installed
import peft  # noqa: E402, F401

del sys.modules["bitsandbytes"]
