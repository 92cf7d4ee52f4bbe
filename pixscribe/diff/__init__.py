"""What changed between two runs: images, and the objects of the images that are in both."""

from pixscribe.diff.comparison import compare_runs

__all__ = ["compare_runs"]
