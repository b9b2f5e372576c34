"""Federated learning: rounds, sites, cohorts, local and server optimisers, evaluation and metrics.

Start with `rounds.py`, the loop over the rounds. This package holds what a round computes; processes, shared
memory and Sacred stay outside.
"""
