"""The whole of it: generate one image from a package.

    python examples/embed/draw.py examples/students/fashion "a photo of a red boot on a white background"

Needs `pip install ./runtime` and nothing else.
"""

import sys

from rcdeploy_runtime import TextToImage

model = TextToImage.load(sys.argv[1])
images, record = model.generate(sys.argv[2], seed=7)
images[0].save("out.png")
print(f"out.png: seed {record['seeds'][0]}, {record['seconds']['all']:.2f} s on {record['device']}")
