"""The command line's parser."""

import argparse
import sys
from typing import NoReturn

from flywheel_contract.exit_codes import ExitCode


class Parser(argparse.ArgumentParser):
    """Wrong usage is the user's mistake, and has the exit code of one."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}\n")
