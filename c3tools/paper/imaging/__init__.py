"""Images from embeddings: generators, their training, and an adapter to pre-trained ones (the extra
``images``).
"""
