"""The frozen matrices beside adapters in four bits: NF4 in blocks of 64 (QLoRA: Dettmers et al. 2023), by bitsandbytes.

Each product takes the matrix's values out of their four bits first. Embeddings and heads aren't quantised.
"""

from collections.abc import Mapping
from typing import Any

import torch

from scaling_fl.errors import UserError

_BLOCK = 64  # values that share a float32 scale
_SCALES = ".scales"  # after the name of a matrix in a file
INSTALL = "./run-local.sh -m pip install bitsandbytes"


def check(device: torch.device) -> None:
    """Raise `UserError` if the package isn't there, or doesn't work on `device`."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(f"base_precision=nf4: it needs the package bitsandbytes: {INSTALL}") from error
    try:
        matrix = torch.linspace(-1, 1, 64 * 64).view(64, 64)
        x = torch.eye(64, device=device).requires_grad_()
        out = FourBitLinear(matrix.shape, None, *pack(matrix)).to(device)(x)
        out.sum().backward()
        assert x.grad is not None
        worst = (out.detach().cpu() - matrix.T).abs().max()
        assert worst < 0.2, f"values are wrong by {worst:.2f}"
    except Exception as error:  # whatever its kernels raise
        raise UserError(
            f"base_precision=nf4: bitsandbytes doesn't work on {device} ({type(error).__name__}: {error}); set "
            "base_precision=bf16"
        ) from error


def names(module: Any) -> set[str]:
    """The names of the matrices that can be quantised: those of the base in linear layers that have adapters."""
    from peft.tuners.lora import LoraLayer

    layers = {
        f"{name}.base_layer.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer) and isinstance(layer.base_layer, torch.nn.Linear)
    }
    return layers & getattr(module, "base_names", layers)  # not the table of embeddings, if the output layer shares it


def pack(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two values in each byte (n / 2, 1) uint8, and the scales of the blocks (n / 64,) float32."""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(matrix.contiguous(), quant_type="nf4", blocksize=_BLOCK)
    return packed, state.absmax


def unpack(packed: torch.Tensor, scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The matrix of `shape` in float32."""
    from bitsandbytes import functional

    matrix: torch.Tensor = functional.dequantize_4bit(packed, _state(scales, shape))
    return matrix.float()


def rounded(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix as four bits hold it."""
    return unpack(*pack(matrix), matrix.shape)


def tensors(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a file holds of a matrix, for `attach`."""
    packed, scales = pack(matrix)
    return {name: packed, name + _SCALES: scales}


def attach(module: Any, stored: Mapping[str, torch.Tensor]) -> None:
    """Put the matrices of a file into the layers of `module`."""
    for name in names(module):
        owner = module.get_submodule(name.removesuffix(".base_layer.weight"))
        linear = owner.base_layer
        owner.base_layer = FourBitLinear(linear.weight.shape, linear.bias, stored[name], stored[name + _SCALES])


def weights(module: Any) -> dict[str, torch.Tensor]:
    """The matrices of layers with four bits, in float32 on the CPU, by the name of the packed one."""
    return {
        f"{name}.weight": unpack(layer.weight, layer.scales, layer.shape).cpu()
        for name, layer in module.named_modules()
        if isinstance(layer, FourBitLinear)
    }


def scales(module: Any) -> dict[str, torch.Tensor]:
    """The scales of layers with four bits, by name."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, FourBitLinear)}
    return {f"{name}.scales": layer.scales for name, layer in layers.items()}


class FourBitLinear(torch.nn.Module):
    """A linear layer (out, in) of packed values; see `pack`. It isn't trained."""

    def __init__(self, shape: torch.Size, bias: torch.nn.Parameter | None, packed: torch.Tensor, scales: torch.Tensor):
        super().__init__()
        self.shape, self.bias = shape, bias
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", scales, persistent=False)  # no part of the state that sites average
        self.scales: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _Product.apply(x, self.weight, self.scales, self.shape)
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ, which keeps the four bits for the backward pass, in the place of W."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, shape: torch.Size
    ) -> torch.Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.shape = shape
        return torch.nn.functional.linear(x, unpack(packed, scales, shape).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        packed, scales = ctx.saved_tensors
        return gradient @ unpack(packed, scales, ctx.shape).to(gradient.dtype), None, None, None


def _state(scales: torch.Tensor, shape: torch.Size) -> Any:
    from bitsandbytes import functional

    code = functional.get_4bit_type("nf4", device=scales.device, blocksize=_BLOCK)
    return functional.QuantState(
        absmax=scales, shape=shape, code=code, blocksize=_BLOCK, quant_type="nf4", dtype=torch.float32
    )
