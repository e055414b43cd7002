# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # c3tools in a notebook
#
# From photos and captions to a captioner that never saw an image, with the public names of
# `c3tools` alone. Everything runs offline on a few bundled photos, with the bundled model
# `c3-mini`; it takes about a minute on two cores.

# %%
from pathlib import Path

import c3tools

folder = Path("c3-notebook")
photos = folder / "images"
c3tools.copy_photos(photos)  # 124 openly licensed photos, each with five captions

# %% [markdown]
# ## Connect
#
# `embed` finds the images and their captions, encodes both and writes a store.

# %%
store = c3tools.embed(photos, folder / "c3-store", precision="fp32")
store

# %% [markdown]
# ## How far apart are the modalities?

# %%
report = c3tools.gap_report(store)
report

# %% [markdown]
# ## Collapse and Corrupt
#
# A pipeline is fitted on the train split and then applied to arrays: the mean of each modality is
# subtracted, and training inputs get noise. Applied with numpy alone, it is what another project
# takes as a step.

# %%
pipeline = c3tools.preset("c3", sigma=0.08).fit(store)
images = store.load("image")
closed = pipeline.transform(images.embeddings, modality="image")
pipeline

# %% [markdown]
# ## Learn from texts, caption images
#
# The captioner sees the embeddings of the captions alone. These few captions are enough to show how
# it works, not to write well: `c3 demo` trains on 19,672.

# %%
captioner = c3tools.train_captioner(
    store, pipeline, output=folder / "c3-decoder", size="tiny", epochs=20
)
written = captioner.caption(embeddings=images.embeddings[:3], modality="image")
dict(zip(images.keys[:3], written, strict=True))

# %% [markdown]
# ## Search
#
# Each modality is searched by itself: first the nearest images, then the nearest texts.

# %%
index = c3tools.build_index(store, output=folder / "c3-index")
index.search("a dog on the grass", k=3)[0]
