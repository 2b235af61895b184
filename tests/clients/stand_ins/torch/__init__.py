"""As much of PyTorch as guidellm asks for when it only sends texts; the real one is gigabytes."""

from . import utils  # noqa: F401


class Generator:
    def manual_seed(self, seed: int) -> "Generator":
        return self
