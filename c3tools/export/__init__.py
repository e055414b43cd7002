"""Write transformed embeddings of a store for other tools, with the recipe beside them."""
