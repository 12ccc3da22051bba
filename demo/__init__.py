"""What the shipped model does, in a picture: `python -m mrc_edit.demo OUT`."""
