"""The seven kinds of edit, those of Real-Edit; the miniature world has the same."""

KINDS = ("local", "remove", "add", "texture", "background", "global", "style")
