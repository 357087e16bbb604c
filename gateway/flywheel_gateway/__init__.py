"""The gateway beside a model server: the character's prompt, safety, sessions, feedback, and the log of all of it."""
