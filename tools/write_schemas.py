"""Write the JSON schemas of the report and of the manifest of split models anew, from the types they are made of.

    python tools/write_schemas.py

Run it after a change to a value of the report; a test fails until the schema that ships is current.
"""

import json
from pathlib import Path

from onnxcompress.jobs import report
from onnxcompress.partition import manifest


def main() -> None:
    """Write each schema beside the module that defines the values."""
    for module, name in ((report, "report-schema.json"), (manifest, "manifest-schema.json")):
        path = Path(module.__file__).with_name(name)
        path.write_text(json.dumps(module.json_schema(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
