"""The vocabulary of rewards, in the order that every part of the project keeps."""

PERSPECTIVES = ("following", "preserving", "quality")
BEST = (5.0, 5.0, 5.0)
NO_FAULTS = "None; None; None"  # the reward text that asks for an edit without faults
