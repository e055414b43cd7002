"""Cluster photos and captions with scikit-learn, before and after Collapse, and by cross-centroids.

    c3 demo --photos-to images && c3 embed images
    python examples/clusters/sklearn_clusters.py c3-store

Prints, for several numbers of clusters, the share of captions that come into the cluster of their
photo. K-means on rows as they are puts none there. After Collapse most do with few clusters, and
fewer the smaller clusters are: rows of one kind are still nearer to each other. HDBSCAN sees
density, which differs between the kinds too. Takes seconds. Needs scikit-learn.
"""

import sys

import numpy as np
from sklearn.cluster import HDBSCAN, KMeans

import c3tools


def share(images: np.ndarray, texts: np.ndarray) -> str:
    """Return the share of captions in the cluster of their photo; -1 is HDBSCAN's noise."""
    together = (images[pairs.item_index] == texts) & (texts >= 0)
    return f"{100 * together.mean():.0f}%"


store = c3tools.Store.open(sys.argv[1])
pairs = store.pairs()
raw = [pairs.first.embeddings, pairs.second.embeddings]
collapsed = [
    c3tools.EmbeddingTransformer(modality=name).fit_transform(rows)
    for name, rows in zip(("image", "text"), raw, strict=True)
]
photos = len(raw[0])
for k in (5, 11, 40):
    shares = []
    for rows in (raw, collapsed):
        labels = KMeans(k, random_state=0, n_init=1).fit_predict(np.concatenate(rows))
        shares.append(share(labels[:photos], labels[photos:]))
    clusters = c3tools.cluster(store, k=k, output=f"clusters-{k}")
    shares.append(
        share(
            *(
                clusters.assign(rows, name)
                for rows, name in zip(raw, ("image", "text"), strict=True)
            )
        )
    )
    print(f"k = {k}: k-means {shares[0]}, after Collapse {shares[1]}, c3 clusters {shares[2]}")
labels = HDBSCAN(min_cluster_size=5, copy=True).fit_predict(np.concatenate(collapsed))
print(
    f"HDBSCAN after Collapse {share(labels[:photos], labels[photos:])}, with "
    f"{100 * (labels < 0).mean():.0f}% of the rows in no cluster"
)
