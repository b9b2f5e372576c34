#!/usr/bin/env python
"""Convert a language model from a GGUF file to a folder of float32 safetensors, which `model=FOLDER` takes.

./run-local.sh --no-docker -m pip install gguf
./run-local.sh --no-docker scripts/convert_gguf.py model.gguf models/NAME
"""

import argparse
import importlib.util
import sys
from pathlib import Path


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the GGUF file")
    parser.add_argument("folder", type=Path, help="a new folder")
    arguments = parser.parse_args()
    file, folder = arguments.file, arguments.folder
    if not file.is_file():
        parser.error(f"{file}: there is no such file; name a GGUF file")
    if folder.exists():
        parser.error(f"{folder}: it exists; name a new folder")
    if importlib.util.find_spec("gguf") is None:
        parser.error("the package gguf is needed: ./run-local.sh --no-docker -m pip install gguf")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except Exception as error:  # a file that is damaged can fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        parser.error(f"{file}: cannot load it: {reason}; is it complete, and a language model that transformers knows?")
    # The weights are plain floats now, but the library takes them for quantised ones, and refuses to save them.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {model.num_parameters() / 1e6:.1f} M parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
