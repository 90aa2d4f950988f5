"""Sentences on a frozen model: the task, its texts, probes for the layers, and tokens that leave on the way."""
