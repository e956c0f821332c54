"""Upstreams: `ports.Provider`, once per kind. Providers know the network and nothing of money or dialects."""
