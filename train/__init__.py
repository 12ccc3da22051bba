"""Training: triplets and rewards -> checkpoint folder."""
