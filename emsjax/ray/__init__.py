"""Ray Data on emsjax: an actor class for `Dataset.map_batches`, and the call that goes with it."""

from emsjax.ray.dataset import generate
from emsjax.ray.stage import Generate

__all__ = ["Generate", "generate"]
