"""A small data set of three topics, in two splits."""

TRAIN = {"body": ["ship", "kite", "road", "", "gull"], "topic": [0, 1, 2, 2, 1]}
TEST = {"body": ["wave", "wind"], "topic": [0, 1]}
