"""Plugins: found by ``registry``, put in order by ``stack``, named when something is their fault.

Empty, so that listing what is installed loads neither pluggy nor torch.
"""
