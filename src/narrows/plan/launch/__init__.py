"""The files that run a plan elsewhere: one writer a place, each text alone."""

TARGETS = ("torchrun", "slurm", "kubernetes", "ray", "skypilot")
"""The names of `targets.KINDS`, told here without loading what writes them."""
