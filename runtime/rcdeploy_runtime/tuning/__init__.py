"""rcdeploy-runtime tune: measures how this machine draws from a package fastest, and keeps the choice for `load`."""
