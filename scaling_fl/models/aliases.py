"""Short names of models on the hub."""

ALIASES = {
    "albert": "albert-base-v1",
    "bert": "bert-base-cased",
    "distilbert": "distilbert-base-cased",
}
