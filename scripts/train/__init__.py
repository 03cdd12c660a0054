"""Training from a finished dataset: one plain loop to read, and one short script per framework.

They are other people's training jobs, to be copied from; the pipeline itself never imports them.
"""
