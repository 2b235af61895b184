#!/usr/bin/env python3
"""Prints mean and count of each stage since the last call, from a router's metrics. Usage: stages.py URL"""

import json
import pathlib
import re
import sys
import tempfile
import urllib.request

known_file = pathlib.Path(tempfile.gettempdir()) / "tandem_stages.json"
known = json.loads(known_file.read_text()) if known_file.exists() else {}
sums: dict[str, float] = {}
for line in urllib.request.urlopen(sys.argv[1]).read().decode().splitlines():
    if match := re.match(r'(tandem_\w*seconds)_(sum|count)(\{[^}]*\})? ([-+.e\d]+)', line):
        sums["|".join((match[1] + (match[3] or ""), match[2]))] = float(match[4])
for name in sorted({key.split("|")[0] for key in sums}):
    count = sums[name + "|count"] - known.get(name + "|count", 0)
    total = sums[name + "|sum"] - known.get(name + "|sum", 0)
    if count > 0 and total >= 0:
        print(f"  {name}: {1e3 * total / count:.2f} ms x {count:.0f}")
known_file.write_text(json.dumps(sums))
