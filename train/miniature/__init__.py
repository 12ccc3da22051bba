"""The miniature world: procedural scenes, instructions and an oracle that knows what should have happened.

photographs   the backgrounds that installed packages ship
scene         objects on backgrounds, drawn
edits         instructions and the scenes they ask for, perfect or imperfect on purpose
oracle        the three rewards and the failure texts of any edit
"""
