"""`mrc-edit MODEL --batch IN OUT`: a folder, a table or tar shards, edited once each, whatever happens on the way."""
