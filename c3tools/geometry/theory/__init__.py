"""Run the theory of the modality gap: at initialisation, after optimisation, the stable region."""
