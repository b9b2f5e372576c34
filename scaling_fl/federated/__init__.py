"""Federated learning: rounds, sites, cohorts, methods, local and server optimisers, evaluation, metrics.

Start with `rounds.py`, the loop over the rounds; `algorithms` holds what methods change in it. This package holds what a
round computes; processes, shared memory and Sacred stay outside.
"""
