"""Scores an edit on the three perspectives. Empty in this version."""
