"""An exporter: python my_exporter.py export model.txt"""

import sys
from pathlib import Path

from segclip.cli import main
from segclip.export import EXPORTERS, Exported


def write_text(exported: Exported, file: Path) -> None:
    file.write_text(f"outputs: {', '.join(exported.outputs)}\n{exported.program.graph}")


EXPORTERS[".txt"] = write_text

if __name__ == "__main__":
    sys.exit(main())
