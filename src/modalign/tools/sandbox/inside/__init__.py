"""What runs in the sandboxed process: standard library and RestrictedPython only, nothing of modalign.

The process is started with this folder as a separate package, so its files import each other
relatively and know nothing about the rest.
"""
