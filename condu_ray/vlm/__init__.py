"""The vision-language model: loading, preprocessing, zero-shot classifiers, prototypes, routers, novelty."""
