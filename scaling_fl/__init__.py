"""Federated fine-tuning of pre-trained language models: N sites, one model, no shared data."""

__version__ = "0.1.0"
