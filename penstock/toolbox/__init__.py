"""Tools that run on a tools worker, beside the gateway and not in it: built-in ones and those of MCP servers."""
