"""`python -m tests.eval.runs.killed COUNT ARGUMENTS`: a run that is killed while it writes the line of a sample.

The line is half written then, after COUNT whole ones, as it can be when a process is killed or a disk is full.
"""

import json
import os
import signal
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

from eval.__main__ import main
from eval.runs.records import Writer


def mortal(count):
    """A `Writer.add` that kills the process."""
    written = 0

    def add(self, records):
        nonlocal written
        for record in records:
            if written == count:
                self._file.write(json.dumps({"sample": record.to_json()}).encode()[:100])
                self._file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            self._write("sample", record.to_json())
            written += 1

    return add


if __name__ == "__main__":
    Writer.add = mortal(int(sys.argv[1]))
    main(sys.argv[2:])
