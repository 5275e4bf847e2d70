"""Keys of agents: curve and encodings, encryption between two keys, words to keys, and the sealed file.

Nothing here decides who may use a key, and nothing here logs.
"""
