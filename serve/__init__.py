"""`mrc-serve`: an HTTP server over `AsyncEngine`, with the interface of OpenAI's image edits, and a page."""
