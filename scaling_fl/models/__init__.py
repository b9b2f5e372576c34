"""Models: loading with a new classification head, the demo's tiny model, the flat parameter buffer, fingerprints.

This package deals with one model in one process. `federated` trains it; `distributed` shares its memory.
"""
