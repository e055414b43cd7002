"""A step for the pipelines of c3tools: remove the directions in which embeddings vary most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from c3tools.moments import Moments
from c3tools.transforms.operations import Affine
from c3tools.transforms.steps import Step


@dataclass(eq=False)
class AllButTheTop(Step):
    """x -> (x - mean) (I - U U'), with the first principal components of each modality as columns
    of U (Mu and Viswanath, All-but-the-Top, ICLR 2018).

    Attributes:
        components: number of components that are removed.
    """

    components: int = 2

    kind = "all-but-the-top"
    centres = True

    def map_of(self, moments: Moments) -> Affine:
        """Return the map of a modality, from its moments alone."""
        _, vectors = np.linalg.eigh(moments.covariance)  # by increasing variance
        top = vectors[:, -self.components :]
        return Affine(centre=moments.mean, matrix=np.eye(len(top)) - top @ top.T)
