"""Several nodes as one job: who is who in the cluster, the control link between launchers, and what they agree on.

Here: one launcher talking to others. Not here: the workers' collectives (`distributed`).
"""
