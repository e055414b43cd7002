"""Connect: contrastive training of two towers, or of two small heads on frozen features."""
