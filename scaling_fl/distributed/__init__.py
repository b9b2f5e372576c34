"""Collectives: how workers exchange objects, wait for each other, and sum flat rows of parameters.

Here: process groups, shared memory, CUDA IPC, fixed-point sums. Only this package and `runtime` know that there are
several processes. Not here: what is summed and why (`federated`), and starting processes (`runtime`).
"""
