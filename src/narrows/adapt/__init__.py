"""Model → model: low-rank products beside frozen matrices, those in fewer bits, merging."""
