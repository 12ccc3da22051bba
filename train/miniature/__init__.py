"""The miniature world: procedural scenes, instructions and an oracle that knows what should have happened.

photographs   the backgrounds that installed packages ship
scene         objects on backgrounds, drawn
edits         instructions and the scenes they ask for, perfect or imperfect on purpose
oracle        three scores and failure texts of any edit
judge         the oracle as a judge
triplets      the data set
model         the untrained model; recipe trains it
"""
