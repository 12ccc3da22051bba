"""Real-Edit (arXiv 2411.04713): photographs with seven instructions each, edited, judged and compared."""
