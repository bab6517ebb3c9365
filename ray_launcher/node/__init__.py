"""One node, no Ray: the supervisor process that owns the children, and the client that talks to it."""
