"""Files that several processes write together: tensors, claims on work, shards."""
