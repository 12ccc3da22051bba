"""`mrc`: every command under one name."""
