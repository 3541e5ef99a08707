"""The gRPC server: a query in, the top candidates out."""
