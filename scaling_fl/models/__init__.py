"""Models: loading them with a new head, the demo's tiny model, the flat parameter buffer, fingerprints.

Here: everything about one model in one process. Not here: training (`federated`) and sharing memory (`distributed`).
"""
