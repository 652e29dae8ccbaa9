"""Ablations of ConDU's rule and of its prediction on a finished run's experts; nothing is trained."""
