"""Four lenses on the same sparse tokens, and sentence-level anchors beside them: what each says of the tokens of traces."""
