"""What can go wrong in the demo."""


class DemoError(Exception):
    """Something failed; the message says what. The demo ends with exit code 1 and tells what the cluster knows."""
