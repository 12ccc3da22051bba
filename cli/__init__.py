"""`mrc`: every command under one name, and `mrc doctor`."""
