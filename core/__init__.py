"""What every part of the project shares: errors, files, the vocabulary of rewards, tables."""
