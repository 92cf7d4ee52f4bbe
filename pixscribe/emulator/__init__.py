"""A Gemini-compatible server for demos, tests and benchmarks, at least as strict as the service.

It holds files for 48 hours, looks at the pixels it is sent and answers the coloured shapes it sees, keeps to quotas,
and fails in any way that it is asked to. Where the documentation is silent, the harsher reading is taken.
"""

from pixscribe.emulator.books import Books, Question, Upload
from pixscribe.emulator.faults import FAULTS
from pixscribe.emulator.options import EmulatorOptions
from pixscribe.emulator.server import Emulator, serve_forever

__all__ = ["FAULTS", "Books", "Emulator", "EmulatorOptions", "Question", "Upload", "serve_forever"]
