"""What people say about replies: tasks for annotators, their labels, and how far they agree."""
