"""Topics of photos and captions together, with BERTopic.

    pip install bertopic
    c3 demo --photos-to images && c3 embed images && c3 clusters
    python examples/clusters/bertopic_topics.py c3-store c3-clusters

BERTopic clusters embeddings, and names each cluster by its words. Given both kinds as they are, it
makes topics of photos and topics of captions. Here the clusters come from c3 clusters, and BERTopic
names them: photos are documents without words. Prints the topics, and the share of captions in the
topic of their photo, also for BERTopic's own clustering of collapsed rows. Takes a minute.
"""

import sys

import numpy as np
import pyarrow.parquet as pq
from bertopic import BERTopic
from bertopic.backend import BaseEmbedder
from bertopic.cluster import BaseCluster
from bertopic.dimensionality import BaseDimensionalityReduction
from sklearn.feature_extraction.text import CountVectorizer

import c3tools

store = c3tools.Store.open(sys.argv[1])
pairs = store.pairs()
captions = pairs.second.captions
photos = len(pairs.first)
documents = [""] * photos + captions
words = CountVectorizer(stop_words="english")


def share(topics: np.ndarray) -> str:
    """Return the share of captions in the topic of their photo; -1 is no topic."""
    texts = topics[photos:]
    together = (topics[:photos][pairs.item_index] == texts) & (texts >= 0)
    return f"{100 * together.mean():.0f}%"


# The clusters of c3 clusters, named by BERTopic
table = pq.read_table(f"{sys.argv[2]}/clusters.parquet")
labels = table.column("cluster").to_numpy()
named = BERTopic(
    embedding_model=BaseEmbedder(),
    umap_model=BaseDimensionalityReduction(),
    hdbscan_model=BaseCluster(),
    vectorizer_model=words,
)
topics, _ = named.fit_transform(documents, embeddings=np.zeros((len(documents), 2)), y=labels)
print(f"c3 clusters: {share(np.array(topics))} of the captions are in the topic of their photo")
for name in named.get_topic_info()["Name"]:
    print(f"  {name}")

# BERTopic's own clustering, of rows as they are and after Collapse
raw = {"image": pairs.first.embeddings, "text": pairs.second.embeddings}
collapsed = {
    name: c3tools.EmbeddingTransformer(modality=name).fit_transform(rows)
    for name, rows in raw.items()
}
for title, rows in (("as they are", raw), ("after Collapse", collapsed)):
    model = BERTopic(vectorizer_model=words, embedding_model=BaseEmbedder())
    topics, _ = model.fit_transform(documents, np.concatenate(list(rows.values())))
    noise = np.mean(np.array(topics) < 0)
    print(
        f"BERTopic on rows {title}: {share(np.array(topics))}; {noise:.0%} of the rows in no topic"
    )
