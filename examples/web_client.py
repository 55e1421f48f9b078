"""Send a photo to a running `segclip web`: python examples/web_client.py ADDRESS PHOTO MASK LABEL...

ADDRESS is, for example, http://127.0.0.1:7860. Prints what was found and writes the mask, whose pixel values are label
numbers. This needs only Python.
"""

import base64
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

address, photo, mask, *labels = sys.argv[1:]
query = {"photo": base64.b64encode(Path(photo).read_bytes()).decode(), "labels": labels, "background": "auto"}
request = urllib.request.Request(f"{address}/segment", json.dumps(query).encode())
request.add_header("Content-Type", "application/json")
while True:
    try:
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        break
    except urllib.error.HTTPError as error:
        if error.code != 503:
            sys.exit(f"{error.code}: {json.load(error)['error']}")
        time.sleep(int(error.headers["Retry-After"]))  # the server is busy
Path(mask).write_bytes(base64.b64decode(answer["mask_png"]))
for found in answer["found"]:
    print(f"{found['index']:3} {found['label']:20} {found['share']:6.1%} {found['score']:.2f}")
for label in answer["not_found"]:
    print(f"    {label:20} not found")
