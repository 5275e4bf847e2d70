"""The operator's command: every verb is file operations on a runtime's HTTP face.

It holds no rule of the runtime and imports nothing of it but the error table, the value types and what all clients
share.
"""
