"""Communication between workers: control plane, barriers, and weighted sums over shared memory, CUDA IPC and NCCL.

Only this package and `runtime` communicate between processes. What is summed, and why, is up to `federated`;
`runtime` starts the processes.
"""
