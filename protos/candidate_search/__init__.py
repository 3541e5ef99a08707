"""The public API: protocol buffers and the generated stubs."""
