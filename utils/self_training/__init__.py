"""Self-training: labelling the target with the network's own predictions and learning from them (CBST, CRST, FADA)."""
