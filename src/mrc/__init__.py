"""Multi-Reward-Condition image editing (MRC, arXiv 2411.04713): train, export, edit.

`from mrc.engine import Engine` edits images; `from mrc.model import load_checkpoint` reads a
checkpoint. Importing `mrc` itself imports nothing heavy.
"""

__version__ = "0.1.0"
