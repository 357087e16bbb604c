"""What the trainer reads and how it is filtered: rows, privacy, safety, near-duplicates, the split by user."""
