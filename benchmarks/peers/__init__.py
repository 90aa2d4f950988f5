"""Engines that people would use instead, each behind the verbs of `llmlab.measure.benchmark.Contestant`.

These files run in the peers' own environment, so they import nothing of the lab.
"""
