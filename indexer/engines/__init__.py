"""Engines that others keep: each is known to one file here, and nowhere else."""
