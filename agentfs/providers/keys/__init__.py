"""Keys of agents: the curve, encryption, words and sealed files, and the keeper that alone holds secrets."""
