"""Several nodes as one job: each node's rank, the control link between launchers, and the agreement on a plan.

Here: launchers talking to each other. Not here: the workers' collectives (`distributed`).
"""
