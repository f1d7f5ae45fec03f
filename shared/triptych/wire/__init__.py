"""Messages with large tensors: one copy on the wire, none through shared memory."""
