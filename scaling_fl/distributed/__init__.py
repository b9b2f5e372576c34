"""Communication between workers: control plane, barriers, and weighted sums over shared memory, CUDA IPC and NCCL.

Only this package and `runtime` know that there are several processes. What is summed, and why, is up to `federated`;
`runtime` starts the processes.
"""
