"""The runtime behind LitServe, for server_load.py --beside-litserve: litserve_app.py PACKAGE PORT THREADS."""

import base64
import io
import sys
from typing import Any

import litserve  # type: ignore[import-not-found]
from PIL import Image

from rcdeploy_runtime import TextToImage


class Drawing(litserve.LitAPI):  # type: ignore[misc]
    """Requests of a batch are drawn together, as our server draws them."""

    def setup(self, device: str) -> None:
        self.model = TextToImage.load(sys.argv[1], threads=int(sys.argv[3]))

    def decode_request(self, request: dict[str, Any]) -> tuple[str, int]:
        return request["prompt"], request["seed"]

    def batch(self, inputs: list[tuple[str, int]]) -> list[tuple[str, int]]:
        return inputs

    def predict(self, inputs: list[tuple[str, int]]) -> list[Image.Image]:
        return self.model.generate([prompt for prompt, _ in inputs], seed=[seed for _, seed in inputs])[0]

    def unbatch(self, output: list[Image.Image]) -> list[Image.Image]:
        return output

    def encode_response(self, output: Image.Image) -> dict[str, Any]:
        buffer = io.BytesIO()
        output.save(buffer, "png")
        return {"data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]}


if __name__ == "__main__":
    api = Drawing(max_batch_size=10, batch_timeout=0.01, api_path="/v1/images/generations")
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning"
    )
