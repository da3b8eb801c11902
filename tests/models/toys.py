"""Every adapted transformer at toy size, by the name of the model that is built like it."""

from __future__ import annotations

import toys_image
import toys_video
from toy import Toy

TOYS: dict[str, Toy] = {**toys_video.TOYS, **toys_image.TOYS}
