"""Write the JSON schema of the report anew, from the types that it is made of.

    python tools/write_schemas.py

Run it after a change to a value of the report; a test fails until the schema that ships is current.
"""

import json
from pathlib import Path

from onnxcompress.jobs import report


def main() -> None:
    """Write the schema beside the module that defines the report."""
    path = Path(report.__file__).with_name("report-schema.json")
    path.write_text(json.dumps(report.json_schema(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
