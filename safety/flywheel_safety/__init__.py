"""Whether a text is safe: one protocol, used by curation and by the gateway alike."""
