"""Procedural drawings in eight visual worlds, and the clean icons that the shipped backbone is pretrained on."""
