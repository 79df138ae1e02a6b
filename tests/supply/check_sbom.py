"""Checks a bill of materials: of the format's form, and with every crate that the program is built from, each with its
version, its licence and its address. check_sbom.py FILE"""

import json
import subprocess
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def built_from():
    """Name and version of each crate in the program, as cargo tells it."""
    tree = ["cargo", "tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]
    lines = subprocess.run(tree, check=True, capture_output=True, text=True).stdout.splitlines()
    crates = {tuple(line.split()[:2]) for line in lines if line}
    return {(name, version.removeprefix("v")) for name, version in crates} - {("sqril-grpc", OWN)}


with open(sys.argv[1]) as file:
    text = file.read()
fault = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
if fault:
    sys.exit(f"not of the form of CycloneDX 1.5: {fault}")
bill = json.loads(text)
OWN = bill["metadata"]["component"]["version"]
listed = {(part["name"], part["version"]): part for part in bill["components"]}
missing = built_from() - set(listed)
if missing:
    sys.exit(f"not in the bill: {sorted(missing)}")
bare = [name for name, part in listed.items() if not part.get("licenses") or not part.get("purl")]
if bare:
    sys.exit(f"without a licence or an address: {bare}")
print(f"{sys.argv[1]}: {len(listed)} crates, each with its version, licence and address")
