"""The seven kinds of edit, those of Real-Edit; the miniature world has the same."""

import re

KINDS = ("local", "remove", "add", "texture", "background", "global", "style")
# An instruction of Real-Edit, "3. Add: …"; two images of the full set write "3. Add Edit: …"
ENTRY = re.compile(rf"(?:\d++\s*+\.)?\s*+({'|'.join(KINDS)})(?:\s+edit)?\s*:\s*(\S.*)", re.IGNORECASE | re.DOTALL)
